"""Places below the device that keep KV blocks by the name of their content."""
