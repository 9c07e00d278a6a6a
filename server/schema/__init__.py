"""The JSON of each route: what a request may say, what an answer looks like, and what is refused by name."""
