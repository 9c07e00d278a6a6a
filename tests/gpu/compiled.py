"""`TRITON_INTERPRET=0 python -m tests.gpu.compiled [NAME ..]`: what `test_repeats_on_a_gpu` launches, compiled without a GPU.

The interpreter takes much that the compiler refuses. Triton's own launcher sorts the arguments; only running is left out. Prints
how many builds each took, or why there is none.
"""

import sys

import torch

from tests.engine.gpu import launches
from tests.gpu.test_repeats_on_a_gpu import KERNELS, Maker


def main() -> int:
    """Returns the exit code: 1 if one was refused."""
    asked, refused = launches.prepare(True), 0
    for name in sys.argv[1:] or KERNELS:
        before = len(asked)
        make = Maker("cpu", large=False)
        make.dtype = torch.bfloat16
        try:
            kernel = KERNELS[name](make)
            kernel.run(slice(0, kernel.count))
        except Exception as error:
            refused += 1
            print(f"{name}: {str(error)[-500:]}")
        else:
            print(f"{name}: {len(asked) - before} builds")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
