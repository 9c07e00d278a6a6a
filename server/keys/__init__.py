"""API keys from a file: who has one, what each may use, and what each has used."""
