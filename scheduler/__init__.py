"""Decides which tokens of which requests run next and where every KV block lives. Pure Python, no I/O, time injected."""
