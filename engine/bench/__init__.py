"""What the engine's parts take: steps, serving, starts, KV stores. Each is a command, `python -m engine.bench.NAME`."""
