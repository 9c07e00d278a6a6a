"""KV between machines: a door at each keeper, and a tier of each engine that reads through the doors of the others."""
