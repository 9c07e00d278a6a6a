"""Which sequences of a decode batch share leading blocks, and whether reading those once for all of them pays.

Blocks are shared by id: sequences whose block tables begin alike have the same keys there. The number of equal leading blocks
between neighbours in the batch is a histogram; a group of neighbours is a run of its columns, and what it saves, (members - 1) *
shared blocks, is the area of the rectangle under the run. So the best group is the largest rectangle, found in one pass with a
stack; what lies left and right of it is searched in the same way. Sequences that share should therefore be next to each other
in the batch.

There is one level of sharing (Juravsky et al. 2024, "Hydragen", section 3; Ye et al. 2024, "Cascade inference"): a group's members
share one prefix, and what only some of them share beyond it is read by each. Cost: a few slice comparisons per pair of
neighbours, no device work.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kernels.gpu.runtime import sent

# Saving fewer bytes per layer is not worth the launches of prefix and merge: 7 us at 4.8 TB/s. Not confirmed on a GPU.
LEAST_SAVED = 32 << 20
# The same if single tokens without groups would run as a CUDA graph. Groups cannot: their shapes change from step to step. A
# step of 32 layers then launches some 400 kernels from Python, 20 us each, 8 ms in all: 38 GB at 4.8 TB/s. Not confirmed either.
LEAST_SAVED_OVER_GRAPH = 1200 << 20
FILLED = 132  # programs that fill the chip (H100, H200: 132 multiprocessors)
SHORTEST_SPLIT = 512  # keys; a shorter split costs more in partial results than its parallelism gains
TILE = 128  # query rows times query heads per KV head that read a key together


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours in a batch, sequences `start` .. `stop` - 1, with the same first `blocks` blocks; 0 for a gap between groups."""

    start: int
    stop: int
    blocks: int

    @property
    def saved(self) -> int:
        """Blocks that need not be read again."""
        return (self.stop - self.start - 1) * self.blocks


def find_groups(
    tables: Sequence[Sequence[int]],
    lengths: Sequence[int],
    block_size: int,
    block_bytes: int,
    least_saved: int = LEAST_SAVED,
) -> list[Group]:
    """The groups that pay, ascending and disjoint; empty if it is better for each sequence to read all its keys itself.

    Args:
        tables: block ids of each sequence.
        lengths: keys of each, including this step's; the block of the last key is never shared, since it is being written.
        block_size: keys per block.
        block_bytes: bytes of one block's keys and values in one layer.
        least_saved: bytes per layer that the groups must save together.
    """
    whole = [(length - 1) // block_size for length in lengths]
    shared = [
        _alike(one[:most], other[:most])
        for (one, other), most in zip(pairwise(tables), map(min, pairwise(whole)), strict=True)
    ]
    groups = sorted(_rectangles(shared, 0, len(shared)), key=lambda group: group.start)
    worth = [group for group in groups if group.saved * block_bytes >= least_saved / 8]  # each adds tiles of its own
    return worth if sum(group.saved for group in worth) * block_bytes >= least_saved else []


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common beginning of two equally long tables, by bisection: slices compare at the speed of C."""
    low, high = 0, len(one)
    if one == other:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _rectangles(heights: Sequence[int], start: int, stop: int) -> Iterator[Group]:
    """The largest rectangle under `heights[start:stop]`, then those left and right of it, as long as there are any."""
    pending = [(start, stop)]
    while pending:
        left, right = pending.pop()
        best = _largest(heights, left, right)
        if best.saved:
            yield best
            # The columns beside the run join a member to a sequence outside, which may be in another group.
            pending += [(left, best.start - 1), (best.stop, right)]


def _largest(heights: Sequence[int], start: int, stop: int) -> Group:
    """The largest rectangle under columns `start` .. `stop` - 1; column i lies between sequences i and i + 1."""
    best = Group(start, start + 1, 0)
    rising: list[tuple[int, int]] = []  # (first column, height) of runs still open, heights ascending
    for column in range(start, stop + 1):
        height = heights[column] if column < stop else 0
        first = column
        while rising and rising[-1][1] >= height:
            first, tall = rising.pop()
            found = Group(first, column + 1, tall)
            if found.saved > best.saved:
                best = found
        rising.append((first, height))
    return best


@dataclass(frozen=True, slots=True)
class CascadeBatch:
    """A decode batch split into shared prefixes and the rest of each sequence; built on the host once per step, for all layers.

    Attributes:
        splits: the largest number of parts that a prefix is cut into.
        longest: the most sequences in a group or a gap.
        prefix_starts: int32 [splits * groups + 1], first row of each (split, group), gaps included, in `splits` copies of
            the batch.
        prefix_lengths: int32 [splits * groups], keys of each.
        prefix_tables: int32 [splits * groups, most blocks in a split].
        lengths: int32 [sequences], keys in the rest of each sequence, at least one.
        tables: int32 [blocks of all rests], one block table after the other.
        table_starts: int32 [sequences], where each begins in `tables`.
        longest_kv: the most keys in a rest.
    """

    splits: int
    longest: int
    prefix_starts: Tensor
    prefix_lengths: Tensor
    prefix_tables: Tensor
    lengths: Tensor
    tables: Tensor
    table_starts: Tensor
    longest_kv: int

    @classmethod
    def build(
        cls,
        groups: Sequence[Group],
        tables: Sequence[Sequence[int]],
        lengths: Sequence[int],
        *,
        block_size: int,
        heads: int,
        kv_heads: int,
        device: torch.device,
    ) -> "CascadeBatch":
        """Lay out a batch with `groups` as returned by `find_groups` (at least one); makes one copy to the device."""
        spans = list(_with_gaps(groups, len(tables)))
        cuts = [_cuts(span, block_size, heads, kv_heads) for span in spans]
        splits = max(len(cut) - 1 for cut in cuts)
        starts, counts, parts = [0], [], []
        for split in range(splits):
            for span, cut in zip(spans, cuts, strict=True):
                first, last = (cut[split], cut[split + 1]) if split + 1 < len(cut) else (0, 0)
                starts.append(starts[-1] + span.stop - span.start)
                counts.append((last - first) * block_size)
                parts.append(tables[span.start][first:last])
        own = [span.blocks for span in spans for _ in range(span.start, span.stop)]
        rests = [
            table[blocks : -(-length // block_size)] for table, blocks, length in zip(tables, own, lengths, strict=True)
        ]
        rest = [length - blocks * block_size for length, blocks in zip(lengths, own, strict=True)]
        sent = _send(
            [
                [starts],
                [counts],
                parts,
                [rest],
                [[block for table in rests for block in table]],
                [[0, *accumulate(map(len, rests[:-1]))]],
            ],
            device,
        )
        longest = max(span.stop - span.start for span in spans)
        return cls(splits, longest, sent[0][0], sent[1][0], sent[2], sent[3][0], sent[4][0], sent[5][0], max(rest))


def _with_gaps(groups: Sequence[Group], sequences: int) -> Iterator[Group]:
    """`groups`, with the sequences between them as groups that share nothing."""
    end = 0
    for group in [*groups, Group(sequences, sequences, 0)]:
        if group.start > end:
            yield Group(end, group.start, 0)
        if group.stop > group.start:
            yield group
        end = group.stop


def most_splits(context: int, kv_heads: int) -> int:
    """The most parts that a prefix of sequences of up to `context` keys is cut into."""
    return max(min(-(-FILLED // kv_heads), context // SHORTEST_SPLIT), 1)


def _cuts(group: Group, block_size: int, heads: int, kv_heads: int) -> list[int]:
    """Boundaries of a prefix's parts, in blocks; as many parts as fill the chip, which depends on the group alone."""
    if not group.blocks:
        return [0, 0]
    members = TILE // (heads // kv_heads)
    tiles = -(-(group.stop - group.start) // members) * kv_heads
    wanted = min(-(-FILLED // tiles), group.blocks * block_size // SHORTEST_SPLIT)
    length = -(-group.blocks // max(wanted, 1))
    return [*range(0, group.blocks, length), group.blocks]


def _send(tables: Sequence[Sequence[Sequence[int]]], device: torch.device) -> list[Tensor]:
    """Each ragged table as int32 [rows, longest row], short rows padded with zeros; all in one copy."""
    shapes = [(len(table), max(map(len, table))) for table in tables]
    flat = [
        value
        for table, (_, width) in zip(tables, shapes, strict=True)
        for row in table
        for value in (*row, *[0] * (width - len(row)))
    ]
    there = sent(torch.tensor(flat, dtype=torch.int32), device)
    pieces = there.split_with_sizes([rows * width for rows, width in shapes])
    return [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
