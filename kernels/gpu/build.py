"""`python -m kernels.gpu.build`: compiles every kernel for GPUs that need not be here, and says what resources each takes.

Ahead-of-time compilation needs no GPU, only Triton's compiler with an explicit target; the `cuobjdump` in its wheel tells
registers and stack. A kernel whose default configuration spills, or needs more shared memory than the chip has, fails the build.
"""

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import kernels.gpu
from kernels.gpu.runtime import INTERPRETED, Variant

# Bytes of shared memory per block of threads, by compute capability (CUDA programming guide, technical specifications). A
# multiprocessor has 1 KiB more, of which each block takes that for itself.
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
SHARED_OF_SYSTEM = 1024
REGISTERS = 65536  # of a multiprocessor, of all generations here; given to warps in pieces of 256
THREADS = {80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
NOT_KERNELS = {"build", "runtime"}


def _configured_as(arch: int) -> int:
    """As `kernels.gpu.attention.launch.chip` says it of a GPU."""
    return 90 if arch >= 90 and SHARED_LIMIT[arch] >= SHARED_LIMIT[90] else 80


@dataclass(frozen=True, slots=True)
class Built:
    """What one variant takes on one architecture: registers per thread, bytes of spilled stack, bytes of shared memory."""

    module: str
    variant: Variant
    arch: int
    registers: int
    spills: int
    shared: int

    @property
    def resident(self) -> int:
        """How many programs a multiprocessor holds at a time."""
        threads = 32 * self.variant.warps
        registers = -(-32 * self.registers // 256) * 256 * self.variant.warps
        shared = (SHARED_LIMIT[self.arch] + SHARED_OF_SYSTEM) // (self.shared + SHARED_OF_SYSTEM)
        return min(THREADS[self.arch] // threads, REGISTERS // registers, shared)

    @property
    def fits(self) -> bool:
        """Whether nothing spills and a multiprocessor holds as many programs as it should."""
        return self.spills == 0 and self.resident >= self.variant.resident


def variants() -> Iterator[tuple[str, Variant]]:
    """(module below `kernels.gpu`, variant) of every kernel file of this package."""
    prefix = f"{kernels.gpu.__name__}."
    for name in sorted(found.name for found in pkgutil.walk_packages(kernels.gpu.__path__, prefix) if not found.ispkg):
        module = name.removeprefix(prefix)
        if module not in NOT_KERNELS:
            for variant in getattr(importlib.import_module(name), "VARIANTS", ()):
                yield module, variant


def build(module: str, variant: Variant, arch: int) -> Built:
    """Compile one variant for compute capability `arch` (80, 90, ..).

    Raises:
        RuntimeError: Triton interprets in this process, so that kernels cannot be compiled.
    """
    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET=1 is set: nothing can be compiled in this process")
    names, open_ones = variant.kernel.arg_names, _not_specialized(variant.kernel)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned if name not in open_ones}
    source = ASTSource(
        fn=variant.kernel, signature=_signature(variant), constexprs=dict(variant.constants), attrs=attributes
    )
    options = {"num_warps": variant.warps, "num_stages": variant.stages, "maxnreg": variant.registers}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _resources(compiled.asm["cubin"])
    return Built(module, variant, arch, registers, spills, compiled.metadata.shared)


def _not_specialized(kernel: Any) -> set[str]:
    """Arguments about whose values the launcher assumes nothing, because they change from batch to batch."""
    return {
        parameter.name
        for parameter in kernel.params
        if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment
    }


def _signature(variant: Variant) -> dict[str, str]:
    return {
        name: "constexpr" if name in variant.constants else variant.signature[name] for name in variant.kernel.arg_names
    }


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a compiled kernel."""
    tool = next(Path(triton.__file__).parent.rglob("bin/cuobjdump"))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], check=True, capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\d+)", text), re.search(r"STACK:(\d+)", text)
    if registers is None or stack is None:
        raise RuntimeError(f"cuobjdump's output has an unknown form: {text}")
    return int(registers[1]), int(stack[1])


def main() -> int:
    """Print the table. Returns the exit code: 1 if a variant does not fit."""
    parser = argparse.ArgumentParser(prog="python -m kernels.gpu.build", description=__doc__)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=sorted(SHARED_LIMIT))
    parser.add_argument("--only", help="modules whose name contains this")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}")
    print(f"{'kernel':28}{'variant':40}{'sm':>4}{'registers':>11}{'spills':>8}{'shared':>9}{'resident':>10}")
    fits = True
    for module, variant in variants():
        if arguments.only and arguments.only not in module:
            continue
        for arch in (arch for arch in arguments.arch if not variant.archs or _configured_as(arch) in variant.archs):
            built = build(module, variant, arch)
            fits &= built.fits
            print(
                f"{module:28}{variant.name:40}{arch:4}{built.registers:11}{built.spills:8}{built.shared:9}{built.resident:10}"
                f"{'' if built.fits else '  does not fit'}",
                flush=True,
            )
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
