"""What runs on rows between the products: norms, the gated activation, the embedding."""
