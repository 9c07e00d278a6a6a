"""Keys and values into their blocks, and whole blocks from pool to pool."""
