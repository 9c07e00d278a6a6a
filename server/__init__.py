"""HTTP: parse a request into a valid one, tokenize, stream text back, authenticate, count. No torch."""
