"""Loads models, runs steps, samples, and copies KV blocks between tiers: the workers and the engine's process."""
