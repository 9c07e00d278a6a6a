"""Guesses of the tokens that come next, made without a model, and when they are worth computing."""
