"""From hidden states to numbers that are not tokens: embeddings, scores."""
