"""Attention over paged keys and values: prompt chunks, decode, shared prefixes, and merging of partial results."""
