"""Sums over columns that several programs share: how columns are cut, where parts wait, and in which order they are added.

How many splits a product's columns have follows from the shape and the chip alone (`splits_for`). Splits are added in their order,
`FOLD` at a time, and then these folds in theirs:

    ((s0 + s1 + s2 + s3) + (s4 + s5 + s6 + s7)) + ..

Which program computes which splits thus changes no bit. For few rows each split has a program, so that the chip is full; for many
rows a program computes a whole fold, which leaves a quarter of the partial sums to be written and read again.

A tile's programs leave their parts in memory and count themselves; the one that comes last adds all of them and sets the count back
to zero. None waits for another, as with Marlin's locks (Frantar et al. 2024, arXiv 2408.11743, section 3.4), where each waits
until the parts before its own have been added: the order is the same, and so are the bits.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.linear.quantized_matrix import TILE
from kernels.gpu.workspace import Workspace

FOLD = 4
LEAST_ROWS = 16  # of a tile
# Programs per multiprocessor, by lanes: as many as Hopper has registers (32) or shared memory (64) for at 16 rows. They hide each
# other's latency.
RESIDENT = {32: 4, 64: 3}
_LEAST_SPANS = 4  # of a split
_PROCESSORS = 132  # assumed if Triton interprets and there is no chip


@dataclass(frozen=True, slots=True)
class PartialSums:
    """Memory for the parts of products that run one after another on a device.

    Attributes:
        memory: for the parts, fp32.
        arrived: int32, for each tile in several parts how many are there. Zero before and after each product.
    """

    memory: Workspace
    arrived: Tensor

    @classmethod
    def on(cls, device: torch.device, rows: int) -> "PartialSums":
        """For every product of up to `rows` rows there can be on this device."""
        chip = processors(device)
        counts = torch.zeros(most_counts(rows, chip), dtype=torch.int32, device=device)
        return cls(Workspace(most_bytes(rows, chip), device), counts)

    def take(self, parts: int, rows: int, tiles: int, row_tiles: int) -> tuple[Tensor, Tensor]:
        """fp32 [parts, rows, tiles * 128], which holds nothing known, and int32 [tiles * row_tiles], all zero.

        Raises:
            ValueError: there is less.
        """
        if tiles * row_tiles > len(self.arrived):
            raise ValueError(f"a product of {tiles * row_tiles} tiles; there are counts for {len(self.arrived)}")
        (sums,) = self.memory.take(((parts, rows, tiles * TILE), torch.float32))
        return sums, self.arrived[: tiles * row_tiles]


def taken(
    memory: PartialSums | None, device: torch.device, parts: int, rows: int, tiles: int, row_tiles: int
) -> tuple[Tensor, Tensor]:
    """`PartialSums.take`, or new tensors where there is none."""
    if memory is not None:
        return memory.take(parts, rows, tiles, row_tiles)
    sums = torch.empty((parts, rows, tiles * TILE), dtype=torch.float32, device=device)
    return sums, torch.zeros(tiles * row_tiles, dtype=torch.int32, device=device)


def most_bytes(rows: int, processors: int) -> int:
    """The most that the parts of a product of up to `rows` rows take: of no more than `RESIDENT` programs per multiprocessor, half
    as many where those of many rows are folded."""
    return max(RESIDENT.values()) * processors // 2 * TILE * rows * 4


def most_counts(rows: int, processors: int) -> int:
    """The most tiles that a product of up to `rows` rows has in several parts."""
    return max(RESIDENT.values()) * processors // 2 * -(-rows // LEAST_ROWS)


def splits_for(tiles: int, spans: int, lanes: int, processors: int) -> int:
    """How many splits an output tile's columns have: as many as the chip's `processors` hold programs at once, since a few more
    would make a second, nearly empty round; each has `_LEAST_SPANS` or more. Never a function of the rows, which would make a row's
    sum depend on the other rows."""
    wanted = min(RESIDENT[lanes] * processors // tiles, spans // _LEAST_SPANS)
    return -(-spans // -(-spans // max(wanted, 1)))  # the number needed if all but the last have equal length


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU, or what is assumed where there is none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else _PROCESSORS


@triton.jit
def add_parts(sums, part_stride, parts, mask, like, EACH: tl.constexpr):
    """Parts at pointers `sums`, each `part_stride` after the one before, added `EACH` at a time and these in their order. What
    other programs have written is read from L2, where it is."""
    total, skipped = tl.zeros_like(like), part_stride * 0
    for first in range(0, parts, EACH):
        fold = tl.zeros_like(like)
        for _ in range(first, min(first + EACH, parts)):
            fold += tl.load(sums + skipped, mask, 0.0, cache_modifier=".cg")
            skipped += part_stride
        total += fold
    return total
