"""`python -m tests.gpu.tiny`: every kernel once, compiled, in the smallest shapes; for a sanitizer, under which all is slow."""

import sys

import torch

from tests.gpu.test_repeats_on_a_gpu import KERNELS, Maker


def main() -> int:
    """Print each name as it is done. Returns the exit code: 1 without a GPU."""
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    for name, make in KERNELS.items():
        kernel = make(Maker("cuda", large=False))
        kernel.run(slice(0, kernel.count))
        torch.cuda.synchronize()
        print(f"done {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
