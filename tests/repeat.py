"""Runs tests again and again beside work that keeps every core busy: `python -m tests.repeat [--times N] [pytest's arguments]`.

What passes on a quiet machine may count on being quick. The work is processes of our own, which end with this one.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]):\n    sum(range(100_000))"


@contextmanager
def busy_cores(count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """That many processes that compute, until the end of the block or of this process."""
    workers = [subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.wait()


def repeat(command: Sequence[str], times: int) -> int:
    """Run it that often, until it fails. Returns its last exit code."""
    for turn in range(1, times + 1):
        code = subprocess.run(command, check=False).returncode
        print(f"turn {turn} of {times}: {'passed' if code == 0 else f'exit code {code}'}", flush=True)
        if code:
            return code
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.repeat", description=__doc__)
    parser.add_argument("--times", type=int, default=20)
    options, arguments = parser.parse_known_args(argv)
    with busy_cores(os.cpu_count() or 1):
        return repeat([sys.executable, "-m", "pytest", *arguments], options.times)


if __name__ == "__main__":
    sys.exit(main())
