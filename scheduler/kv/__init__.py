"""Where every KV block is: the device's pool, the prefix cache, eviction, and the tiers below."""
