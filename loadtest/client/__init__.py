"""Speaks to the server under test: sends a plan, stamps what comes back, judges it."""
