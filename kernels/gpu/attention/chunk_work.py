"""How the keys of prompt chunks are split: a few new rows on a long cache are too few tiles to fill a chip.

Every follow-up turn of a chat is such a chunk: 32 new rows of Llama 3 8B on 128k keys are one tile for each of 8 KV heads, 8
programs on a chip of 132 multiprocessors. Split in 16 they are 128. As with single rows (`decode_work`), the rule knows a chunk's
own number of rows and keys, and the model's heads, never the batch or the chip: a chunk's rows have the same bits alone and in any
batch. Cut in another way, a prompt may be split in another way, which may change last bits.

The list of pieces is made on the host, which knows all lengths, once a step for all layers, and only if some chunk is split. Long
pieces come first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.gpu.runtime import sent

FILLED = 132  # pieces of work up to which a chunk is split (H100, H200: 132 multiprocessors)
SHORTEST = 2048  # keys of a part: with fewer, partial states weigh more than what reading the keys takes
MOST = 16  # parts of a chunk: partial states take 4 * heads * (dim + 1) bytes a row and part
TILE = 128  # query rows times query heads per KV head that a piece of work is taken to have
_STEP = 128  # keys, of which every part has a multiple: a program takes a power of two at a time, at most that
# Of an entry, int32: sequence, first row of the tile in its chunk, first key, last key + 1, part, parts, tile, its first state.
FIELDS = 8


@dataclass(frozen=True, slots=True)
class ChunkWork:
    """The pieces of a step's chunks, of which some are split.

    Attributes:
        items: int32 [pieces, FIELDS].
        arrived: int32 [tiles, kv_heads]: of a tile in several parts, how many are done. Zero before and after each layer.
        states: rows of partial states.
    """

    items: Tensor
    arrived: Tensor
    states: int


def split_chunk(rows: int, keys: int, group: int, kv_heads: int) -> int:
    """Keys per part for a chunk of `rows` rows on `keys` keys, its own included; `keys` or more for a single part.

    Args:
        rows: of the chunk.
        keys: that its last row sees.
        group: query heads per KV head.
        kv_heads: of the model, or of this rank.
    """
    parts = min(FILLED // (-(-rows * group // TILE) * kv_heads), keys // SHORTEST, MOST)
    return -(-keys // (max(parts, 1) * _STEP)) * _STEP


def most_states(tokens: int, heads: int, kv_heads: int, longest: int) -> int:
    """The most rows of partial states of a step of `tokens` tokens with sequences of up to `longest` keys."""
    parts = min(FILLED // kv_heads, longest // SHORTEST, MOST)
    return tokens * parts if parts > 1 else 0


def list_pieces(
    chunks: Sequence[tuple[int, int]], *, group: int, kv_heads: int, height: int
) -> tuple[list[tuple[int, ...]], bool]:
    """The entries of chunks given as (rows, keys), in the step's order, long pieces first; and whether some chunk is split.

    Args:
        chunks: rows of each, and keys that its last row sees.
        group: query heads per KV head.
        kv_heads: of the pool.
        height: rows of a tile (`paged.tile_height`).
    """
    items: list[tuple[int, ...]] = []
    tiles = states = 0
    for sequence, (rows, keys) in enumerate(chunks):
        span = split_chunk(rows, keys, group, kv_heads)
        parts = -(-keys // span)
        for first in range(0, rows, height):
            for part in range(parts):
                end = min((part + 1) * span, keys)
                items.append((sequence, first, part * span, end, part, parts, tiles, states))
            tiles += 1
            states += min(height, rows - first) * parts if parts > 1 else 0
    items.sort(key=lambda item: item[2] - item[3])
    return items, any(item[5] > 1 for item in items)


def plan_chunks(
    chunks: Sequence[tuple[int, int]], *, group: int, kv_heads: int, height: int, device: torch.device
) -> ChunkWork | None:
    """The pieces of chunks, as `list_pieces` has them, on `device`; None if none of them is split."""
    items, split = list_pieces(chunks, group=group, kv_heads=kv_heads, height=height)
    if not split:
        return None
    tiles = 1 + max(item[6] for item in items)
    return ChunkWork(
        items=sent(torch.tensor(items, dtype=torch.int32), device),
        arrived=torch.zeros((tiles, kv_heads), dtype=torch.int32, device=device),
        states=sum(min(height, chunks[item[0]][0] - item[1]) for item in items if item[5] > 1),
    )


def most_pieces(rows: int, chunks: int, longest: int, *, group: int, kv_heads: int, height: int) -> tuple[int, int]:
    """(pieces, tiles): the most that `chunks` chunks of `rows` rows together have, on up to `longest` keys each."""
    tiles = rows // height + chunks
    split = min(FILLED // kv_heads, longest // SHORTEST, MOST) > 1
    each = -(-TILE // (group * height)) * (FILLED // kv_heads) if split else 0  # beyond one part for each tile
    return tiles + chunks * each, tiles
