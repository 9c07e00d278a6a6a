"""Where every KV block lives: the device's pool, the prefix cache, eviction, and the tiers below."""
