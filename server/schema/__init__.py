"""The JSON of each endpoint: what a request may say, what an answer looks like, and what is refused by name."""
