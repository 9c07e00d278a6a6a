"""Grammars on the engine's side: where each constrained sequence stands, and which tokens may follow."""
