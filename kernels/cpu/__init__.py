"""CPU kernels in eager torch, one op one file, each with its plain reference. Callers import the submodules."""
