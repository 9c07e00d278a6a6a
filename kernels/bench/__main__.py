"""`python -m kernels.bench cpu`."""

import argparse
import sys


def main() -> int:
    """Run one device's benchmark."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("device", choices=["cpu"])
    parser.add_argument("--threads", type=int, default=None, help="threads; all cores if absent")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions; the median counts")
    arguments = parser.parse_args()

    from kernels.bench import cpu

    return cpu.main(arguments.threads, arguments.rounds)


if __name__ == "__main__":
    sys.exit(main())
