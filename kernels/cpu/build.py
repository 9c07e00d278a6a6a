"""Builds the C++ kernels: `python -m kernels.cpu.build`. Takes seconds the first time, and no time while the sources are the same.

The compiler is called directly: one source file without dependencies needs no build system, and so nothing has to be installed.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernels.cpu.variants import BUILDS, COMMON_FLAGS, SOURCES, VARIANTS, InstructionSet, supported

INTERFACE = SOURCES / "interface.cpp"


def compiler() -> str | None:
    """The C++ compiler: $CXX, else the first of g++, c++, clang++ on the path."""
    names = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


def build(variants: Iterable[InstructionSet]) -> list[InstructionSet]:
    """Build what is not built yet, in parallel, and remove builds of older sources.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: the compiler failed; its output is in `stderr`.
    """
    missing = [variant for variant in variants if not variant.library.is_file()]
    if not missing:
        return []
    command = compiler()
    if command is None:
        raise FileNotFoundError("no C++ compiler: none of $CXX, g++, c++, clang++ is on the path")
    BUILDS.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda variant: compile_library(command, variant.flags, variant.library), missing):
            pass
    current = {variant.library.stem for variant in VARIANTS}
    for old in (path for path in BUILDS.glob("*") if path.suffix in (".so", ".tiles") and path.stem not in current):
        old.unlink(missing_ok=True)
    return missing


def compile_library(command: str, flags: Iterable[str], library: Path, source: Path = INTERFACE) -> None:
    """Compile `source` to `library`: to a temporary name first, so that no other process sees half of it.

    Raises:
        subprocess.CalledProcessError: the compiler failed; its output is in `stderr`.
    """
    partial = library.with_suffix(f".{os.getpid()}.partial")
    words = [command, *COMMON_FLAGS, *flags, str(source), "-o", str(partial)]
    subprocess.run(words, check=True, capture_output=True, text=True)
    partial.replace(library)


def main() -> int:
    """Build and report. Returns 0 even if nothing can be built: torch serves then, as is printed."""
    parser = argparse.ArgumentParser(prog="python -m kernels.cpu.build", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every variant, for an image that runs on other machines")
    everything = parser.parse_args().all
    wanted = list(VARIANTS) if everything else supported()[:1]
    try:
        built = build(wanted)
    except FileNotFoundError as error:
        print(f"C++ kernels not built: {error}. Serving will use torch, slower.")
        return 0
    except subprocess.CalledProcessError as error:
        print(f"C++ kernels not built: {error.cmd[0]} failed. Serving will use torch, slower.\n{error.stderr}")
        return 1 if everything else 0
    for variant in built:
        print(f"built {variant.library.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
