"""Asks a running server, as any client would: `headrace chat`, `headrace doctor --url`."""
