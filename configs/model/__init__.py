"""What a model is, read from its headers only: config.json or a GGUF file, found by path or by name."""
