"""The CPU backend: its number formats, memory plan, KV pool, decoders and worker."""
