"""Triton kernels: one operation a file, each beside its plain-torch reference. Importing the package alone needs no triton."""
