"""What the HTTP process takes, without any engine behind it: `python -m server.bench.streams`."""
