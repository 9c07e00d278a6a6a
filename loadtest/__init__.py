"""Replays traces against any OpenAI server, checks what it streams and reports; simulates the real scheduler."""
