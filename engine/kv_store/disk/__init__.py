"""The tier on disk: its store, files, slots and heads, and the codec that blocks may go through."""
