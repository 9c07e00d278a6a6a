"""`python -m kernels.bench cpu`, `python -m kernels.bench gpu --json results.json`, `python -m kernels.bench --all --json OUT`."""

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Run one device's benchmark, or everything. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("device", nargs="?", choices=["cpu", "gpu"])
    parser.add_argument("--all", action="store_true", help="check and time everything that needs a GPU, in 8 minutes")
    parser.add_argument("--again", action="store_true", help="with --all: what failed in --json's run, in 5 minutes")
    parser.add_argument("--threads", type=int, default=None, help="cpu: number of threads [all cores]")
    parser.add_argument("--model", choices=["smollm2-135m", "qwen2.5-1.5b"], help="cpu: whose shapes [smollm2-135m]")
    parser.add_argument("--rounds", type=int, default=15, help="repetitions; the median counts")
    parser.add_argument("--json", type=Path, help="gpu, --all: write the figures there, part by part")
    arguments = parser.parse_args()
    if arguments.all == (arguments.device is not None):
        parser.error("name a device, or give --all")
    if arguments.again and (not arguments.all or arguments.json is None):
        parser.error("--again goes with --all and --json")
    if arguments.all:
        from kernels.bench.everything import run_again, run_all

        return 1 if (run_again if arguments.again else run_all)(arguments.json) else 0
    if arguments.device == "cpu" and arguments.json is not None:
        parser.error("--json goes with gpu")
    if arguments.device == "gpu" and arguments.threads is not None:
        parser.error("--threads goes with cpu")
    if arguments.device != "cpu" and arguments.model is not None:
        parser.error("--model goes with cpu")
    if arguments.device == "gpu":
        from kernels.bench import gpu

        return gpu.main(arguments.rounds, arguments.json)
    from kernels.bench import cpu

    return cpu.main(arguments.threads, arguments.rounds, arguments.model or "smollm2-135m")


if __name__ == "__main__":
    sys.exit(main())
