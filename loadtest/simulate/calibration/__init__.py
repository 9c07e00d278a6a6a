"""A device's constants from measured runs of any server, and how far predictions are from them."""
