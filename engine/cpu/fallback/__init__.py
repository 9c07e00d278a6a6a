"""Models that no family describes, computed by the classes of the installed transformers over our blocks."""
