"""One operation per file in eager torch: the exact path, and the reference for the C++ kernels."""
