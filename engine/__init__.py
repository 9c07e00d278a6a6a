"""Does: loads models, runs steps, samples, moves blocks; the worker and its process."""
