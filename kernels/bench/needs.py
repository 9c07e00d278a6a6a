"""What the machine has, and what it lacks: `python -m kernels.bench.needs [--json OUT]`, before anything else is tried.

A rented machine has torch and Triton and seldom the rest. `tests/gpu/requirements.txt` names the packages that have to be carried
there.
"""

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

LACKS_PACKAGES, LACKS_GPU = 3, 4  # exit codes
REQUIREMENTS = "tests/gpu/requirements.txt"
# By the name they are imported by.
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "transformers": "transformers",
    "pytest": "pytest",
    "safetensors": "safetensors",
    "pydantic": "pydantic",
    "yaml": "PyYAML",
    "msgspec": "msgspec",
    "zmq": "pyzmq",
    "psutil": "psutil",
    "gguf": "gguf",
}


def missing() -> list[str]:
    """The distributions whose packages cannot be found, without importing any."""
    return [distribution for package, distribution in PACKAGES.items() if find_spec(package) is None]


def versions() -> dict[str, str | None]:
    """Of each package that is there."""

    def of(distribution: str) -> str | None:
        try:
            return version(distribution)
        except PackageNotFoundError:  # it comes with another
            return None

    return {name: of(name) for name in PACKAGES.values()}


def limits() -> dict[str, Any] | None:
    """Of the first GPU, as torch says them; None if it sees none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "bytes": total,
        "free_bytes": free,
        "shared_bytes_of_a_program": found.shared_memory_per_block_optin,  # type: ignore[attr-defined]  # torch's stub lacks it
        "cuda": torch.version.cuda,
    }


def main() -> int:
    """Print what is lacking. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.needs", description=__doc__)
    parser.add_argument("--json", type=Path, help="write what was found there")
    arguments = parser.parse_args()
    lacks = missing()
    gpu = None if lacks else limits()
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"missing": lacks, "versions": versions(), "gpu": gpu}, indent=1))
    if lacks:
        print(f"not installed: {', '.join(lacks)}; carry the wheels of {REQUIREMENTS} there, and install them")
        return LACKS_PACKAGES
    if gpu is None:
        print("torch sees no GPU: parts that need one will say so")
        return LACKS_GPU
    print(", ".join(f"{name} {value}" for name, value in gpu.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
