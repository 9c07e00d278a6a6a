"""One module a family, each with its description as `FAMILY`. A module put here is a family: nothing else lists them."""
