"""Engines on other machines: where they are placed, how they are started there, the wire to each."""
