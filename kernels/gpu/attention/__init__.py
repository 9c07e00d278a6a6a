"""Attention over paged keys and values: prompt chunks, decode, shared prefixes, and the joining of their parts."""
