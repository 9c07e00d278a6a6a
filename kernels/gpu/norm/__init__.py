"""Operations on rows between the matrix products: norms, the gated activation, the embedding."""
