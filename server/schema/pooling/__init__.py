"""The JSON of endpoints whose results are vectors and scores."""
