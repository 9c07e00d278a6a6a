"""Where every KV block is: the device's pool, its prefix cache and eviction; `tiers`: what lies below the device."""
