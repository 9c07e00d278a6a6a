"""One keeper a machine: the process that owns the host tier and the disk tier of several engines, and what engines see of it."""
