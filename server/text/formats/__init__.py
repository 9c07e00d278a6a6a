"""How models write what is not text, and readers of it."""
