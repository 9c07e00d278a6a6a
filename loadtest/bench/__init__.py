"""Short measurements of one server: `python -m loadtest.bench`, and of its KV tiers: `python -m loadtest.bench.tiers`."""
