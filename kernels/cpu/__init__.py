"""CPU kernels: in eager torch (`ops`, one operation per file) and in C++ (`csrc`), each with a plain reference."""
