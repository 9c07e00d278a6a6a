"""Short measurements of one server: `python -m loadtest.bench`, of its KV tiers: `python -m loadtest.bench.tiers`, and so on."""
