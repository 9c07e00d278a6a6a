"""Beam search over requests that fork."""
