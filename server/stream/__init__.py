"""From the engine's outputs to what a client sees: one open stream for each sequence, and its answer on the wire."""
