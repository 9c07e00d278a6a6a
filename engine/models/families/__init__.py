"""One module per family, with its description as `FAMILY`. A module put here is found: nothing else lists them."""
