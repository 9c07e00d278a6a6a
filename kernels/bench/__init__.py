"""Benchmarks of the kernels, each beside its floor."""
