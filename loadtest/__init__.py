"""Replays traces against any OpenAI server; checks what the server streams."""
