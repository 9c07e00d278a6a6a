"""Kernels, one op one file, each beside its plain-torch reference. Callers import the submodules; nothing is imported here."""
