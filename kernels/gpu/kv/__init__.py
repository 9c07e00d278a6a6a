"""Writes keys and values into their blocks, and copies whole blocks between pools."""
