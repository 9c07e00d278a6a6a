"""What the launchers of the attention kernels here share: the pool and its checks, shapes of programs, lists of variants."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.gpu.runtime import INTERPRETED, Variant

LOG2E = math.log2(math.e)
MOST_REGISTERS = 255  # of a thread
REGISTERS = 65536  # of a multiprocessor, from compute capability 8.0 on
HOPPER_SHARED = 227 * 1024  # bytes that a program may have on compute capability 9.0 and 10.0


@dataclass(frozen=True, slots=True)
class Config:
    """Shape of a program.

    Attributes:
        tile: rows (query rows times query heads per KV head, padded).
        keys: taken at a time.
        warps: per program.
        stages: of the software pipeline.
        resident: of a persistent launch, which has as many programs as the chip holds: how many one multiprocessor holds at a time;
            0: the launch is none.
        boxes: whether keys and values come as boxes of the pool, `keys` rows each (`boxes.describe`), and not by pointers.
    """

    tile: int
    keys: int
    warps: int
    stages: int
    resident: int = 0
    boxes: bool = False

    @property
    def registers(self) -> int | None:
        """Of a thread of a persistent program, which has its share of all. Without a number the compiler may spill some for the
        sake of programs that are not there."""
        return min(REGISTERS // (32 * self.warps * self.resident), MOST_REGISTERS) if self.resident else None

    def constants(self, group: int, dim: int, block_size: int) -> dict[str, int]:
        """The compile-time arguments of every attention kernel, for `group` query heads of `dim` per KV head."""
        return {
            "GROUP": group,
            "D": dim,
            "D_PAD": triton.next_power_of_2(dim),
            "BLOCK_SIZE": block_size,
            "BLOCK_M": self.tile,
            "BLOCK_N": self.keys,
        }


@dataclass(frozen=True, slots=True)
class Pool:
    """One layer of the KV pool, in the form that the kernels expect.

    Attributes:
        kv: [blocks, 2, kv_heads, block_size, dim]; fp8 as bytes where the chip or the interpreter has no e4m3.
        scales: fp32 [blocks, 2, kv_heads] of an fp8 pool, else None.
    """

    kv: Tensor
    scales: Tensor | None

    @classmethod
    def of(cls, q: Tensor, kv: Tensor, scales: Tensor | None, block_tables: Tensor) -> "Pool":
        """Check that the arguments fit together.

        Raises:
            ValueError: they do not; the message names both sides.
        """
        heads, dim = q.shape[1:]
        if kv.dim() != 5 or kv.shape[1] != 2 or kv.shape[4] != dim or heads % kv.shape[2]:
            raise ValueError(
                f"q {tuple(q.shape)} does not fit kv {tuple(kv.shape)} [blocks, 2, kv_heads, block_size, dim]"
            )
        if q.stride(2) != 1 or kv.stride(4) != 1 or block_tables.stride(-1) != 1:
            raise ValueError("q and kv must be contiguous along dim, and the rows of block_tables contiguous")
        if kv.dtype == torch.float8_e4m3fn:
            if scales is None or scales.dim() != 3 or scales.dtype != torch.float32 or scales.stride(2) != 1:
                raise ValueError("an fp8 pool needs scales: fp32 [blocks, 2, kv_heads], heads contiguous")
            return cls(kv if _has_e4m3(kv) else kv.view(torch.uint8), scales)
        if kv.dtype != q.dtype or scales is not None:
            raise ValueError(
                f"q is {q.dtype}, kv {kv.dtype}: they must be the same, without scales, or kv float8_e4m3fn with them"
            )
        return cls(kv, None)

    def strides(self, block_tables: Tensor) -> tuple[int, ...]:
        """Strides in elements, in the order of the kernels' arguments.

        Of block, side, head and token; of block and side of the scales (0 if there are none); of a row of the block tables.
        """
        scales = (0, 0) if self.scales is None else self.scales.stride()[:2]
        return (*self.kv.stride()[:4], *scales, block_tables.stride(0))


@cache
def capability(device: torch.device) -> int:
    """Compute capability of a GPU, 80, 90, ..; 90 if Triton interprets."""
    if INTERPRETED:
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def chip(device: torch.device) -> int:
    """Whose configurations a GPU takes: 90, Hopper's, where a program may have as much shared memory as there (consumers' chips of
    later generations have 99 KiB), else 80. 90 if Triton interprets."""
    if INTERPRETED:
        return 90
    most: int = torch.cuda.get_device_properties(device).shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    return 90 if capability(device) >= 90 and most >= HOPPER_SHARED else 80


@cache
def multiprocessors(device: torch.device) -> int:
    """How many a GPU has; few if Triton interprets, so that programs have more than one piece of work."""
    if INTERPRETED:
        return 3
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _has_e4m3(kv: Tensor) -> bool:
    return not INTERPRETED and capability(kv.device) >= 89


def exponents(scale: float, soft_cap: float) -> tuple[float, float]:
    """(inner, outer) of `tile.scores`."""
    return (2 * scale * LOG2E / soft_cap, soft_cap * LOG2E) if soft_cap else (scale * LOG2E, 0.0)


def variants(
    kernel: Any,
    name: str,
    group: int,
    dim: int,
    dtype: str = "bf16",
    *,
    config_for: Callable[[int, int, int, int], Config],
    pointers: Mapping[str, str],
    absent: tuple[str, ...] = (),
    derived: Callable[[Config], Mapping[str, int]] = lambda _: {},
    registers: int | None = None,
    block_size: int = 32,
    fp8: bool = False,
    **constants: int | bool,
) -> tuple[Variant, ...]:
    """Variants of an attention kernel for Ampere and for Hopper, which reads an fp8 pool as such.

    Args:
        kernel: the `@triton.jit` function.
        name: of the variant.
        group: query heads per KV head.
        dim: of a head.
        dtype: of queries, and of keys and values unless `fp8`.
        config_for: (group, dim, bytes per element, `chip`) -> shape of a program.
        pointers: types of the pointers other than the queries, the pool and its tables.
        absent: optional pointers that are None in this variant.
        derived: compile-time arguments that follow from the shape of a program.
        registers: the most of a thread, if not as the shape of a program has it.
        block_size: of the pool.
        fp8: whether the pool holds 8-bit floats.
        constants: compile-time arguments beside those of the shapes.
    """
    absent += () if fp8 else ("scales",)
    types = {"q": dtype, "kv": dtype, "scales": "fp32"} | dict.fromkeys(("row_starts", "kv_lengths", "tables"), "i32")
    types = {
        name: kind for name, kind in (types | dict(pointers)).items() if name in kernel.arg_names and name not in absent
    }
    fixed = {"INTERPRETED": False} | constants | dict.fromkeys(absent)
    strides = [name for name in kernel.arg_names if name.startswith("stride_")]
    builds = []
    for arch in (80, 90):
        config = config_for(group, dim, 4 if dtype == "fp32" else 2, arch)
        store = {"kv": "fp8e4nv" if arch >= 89 else "u8"} if fp8 else {}
        builds.append(
            Variant(
                name,
                kernel,
                {name: f"*{kind}" for name, kind in (types | store).items()}
                | dict.fromkeys(("sequences", "limit", "positions", "window", *strides), "i32")
                | dict.fromkeys(("inner", "outer", "log2e"), "fp32"),
                config.constants(group, dim, block_size) | fixed | dict(derived(config)),
                warps=config.warps,
                stages=config.stages,
                aligned=(*types, *(each for each in strides if "scale" not in each)),
                archs=(arch,),
                resident=config.resident,
                registers=registers or config.registers,
            )
        )
    return tuple(builds)
