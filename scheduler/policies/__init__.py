"""Who goes first: one scheduling policy a file, and the waiting queue they order."""
