"""Endpoints whose results are vectors and scores instead of text."""
