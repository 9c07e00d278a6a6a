"""What simulations need not plan again: steps that are as the one before, and rows that are."""
