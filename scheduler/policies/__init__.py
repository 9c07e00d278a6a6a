"""Who goes first: one scheduling policy per file, and the waiting queue that they sort."""
