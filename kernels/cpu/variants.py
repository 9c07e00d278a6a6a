"""Which build of the C++ kernels this processor runs. Imports no torch: the choice is made before torch is loaded."""

import hashlib
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
BUILDS = SOURCES / "build"
COMMON_FLAGS = (
    *(
        "-std=c++20",
        "-O3",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
        "-pthread",
        "-mfma",
        "-mf16c",
        "-fvisibility=hidden",
    ),
    # GCC 12's own AVX-512 headers trigger the first two; the third is about vectors in signatures, but everything is inline.
    *("-Wall", "-Wno-uninitialized", "-Wno-maybe-uninitialized", "-Wno-psabi"),
)
ACTIVATIONS = {"silu": 0, "gelu_tanh": 1}  # of an MLP's gate, and their numbers in `csrc/simd.h`


@dataclass(frozen=True, slots=True)
class InstructionSet:
    """One instruction set. `needs` are flags of /proc/cpuinfo, `flags` the compiler's."""

    name: str
    needs: frozenset[str]
    flags: tuple[str, ...]

    @property
    def library(self) -> Path:
        """The path of the library built from the present sources, whether or not it exists."""
        return BUILDS / f"{self.name}-{_digest(self.flags)}.so"


_AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")


def _variant(name: str, *needs: str) -> InstructionSet:
    # Flags that the compiler spells differently.
    compiler = {
        "avx512_vnni": "avx512vnni",
        "avx512_bf16": "avx512bf16",
        "amx_tile": "amx-tile",
        "amx_int8": "amx-int8",
    }
    flags = tuple(f"-m{compiler.get(flag, flag)}" for flag in needs)
    return InstructionSet(name, frozenset((*needs, "fma", "f16c")), flags)


# Best first.
VARIANTS = (
    _variant("amx", *_AVX512, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
    _variant("avx512_bf16", *_AVX512, "avx512_vnni", "avx512_bf16"),
    _variant("avx512_vnni", *_AVX512, "avx512_vnni"),
    _variant("avx512", *_AVX512),
    _variant("avx2", "avx2"),
)


@cache
def _said(name: str) -> str:
    """What /proc/cpuinfo says of this processor under `name`; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def cpu_flags() -> frozenset[str]:
    """This processor's features by Linux's names."""
    return frozenset(_said("flags").split())


def processor() -> str:
    """Its name."""
    return _said("model name")


def supported() -> list[InstructionSet]:
    """The variants that this processor can run, best first."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    return [variant for variant in VARIANTS if variant.needs <= cpu_flags()]


@dataclass(frozen=True, slots=True)
class Choice:
    """The library to use, or None, and the reason, for the start-up log and `headrace doctor`."""

    library: Path | None
    reason: str


def choose() -> Choice:
    """The best build that exists and that this processor can run."""
    able = supported()
    if not able:
        return Choice(None, f"the C++ kernels need Linux on x86-64 with AVX2; this is {platform.machine()}")
    built = next((variant for variant in able if variant.library.is_file()), None)
    if built is None:
        return Choice(None, "the C++ kernels are not built; with a C++ compiler installed: python -m kernels.cpu.build")
    why = "the best this processor has" if built is able[0] else f"{able[0].name} would be faster and is not built"
    return Choice(built.library, f"{built.name} kernels, {why}")


@cache
def _digest(flags: tuple[str, ...]) -> str:
    """A digest of sources and flags, so that a stale build is never loaded."""
    digest = hashlib.blake2b(repr((COMMON_FLAGS, flags)).encode(), digest_size=8)
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()
