"""Triton kernels: one operation per file, each beside its plain-torch reference. Importing the package itself needs no Triton."""
