"""Triton kernels: one operation a file, each beside its plain-torch reference. They need triton; importing this package does not."""
