"""One operation a file in plain torch: the exact path, and the reference of the C++ kernels."""
