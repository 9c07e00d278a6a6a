"""What decode attention has to do, as a list on the device: one entry for each part of a sequence's keys.

How a sequence is split follows from its own length and the model's number of KV heads (`split_length`), never from the batch: a
row's result has the same bits alone and in any batch. The list has as many entries as there are parts, whatever the longest
sequence is, and is made on the device from the lengths that are there: a CUDA graph that holds this kernel serves every length.
It is made once a step for all layers with the same window.

Longer parts come first, so that what is left when programs run out of work is short. Each sequence's entries stand together:
an entry's place in the list is also that of its partial state, and its sequence's states lie in the order of their keys.

Each program writes the entries of a few sequences, and counts those of all for their place: 1024 lengths are 4 KB, read from L2,
some 2 us a step.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant

SHORTEST = 256  # keys of a part: with fewer, partial states weigh more than 3 % of the keys of Llama 3 8B
PROGRAMS = 256  # most pieces of work for a sequence (parts times KV heads), until parts are the longest
# Of an entry, int32: sequence, where its block table begins, first key, last key + 1, its sequence's first entry and parts.
FIELDS = 6
_DOUBLINGS = (
    3  # of the shortest part, up to 2048 keys: longer ones would leave a step's last programs alone on the chip
)
SEQUENCES_EACH = 16  # sequences whose entries a program writes, and entries of each that it writes at a time
_AT_ONCE = 128  # sequences that it counts at a time


def split_length(keys: int, kv_heads: int) -> int:
    """Keys per part for a sequence whose row sees `keys`: the smallest of 256, 512, 1024, 2048 that makes at most `PROGRAMS`
    pieces of work, else 2048."""
    limit = _limit(kv_heads)
    return SHORTEST << sum(keys > limit << doubling for doubling in range(_DOUBLINGS))


def most_parts(longest: int, kv_heads: int) -> int:
    """The most parts that a sequence can have whose row sees up to `longest` keys; 1 for none."""
    borders = [border for doubling in range(_DOUBLINGS) if (border := _limit(kv_heads) << doubling) < longest]
    return max(1, *(-(-keys // split_length(keys, kv_heads)) for keys in (*borders, longest)))


def _limit(kv_heads: int) -> int:
    """The number of keys up to which parts are the shortest."""
    return SHORTEST * max(PROGRAMS // kv_heads, 1)


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """One row per sequence, and the parts of its keys; made by `plan_decode`.

    Attributes:
        sequences: how many rows.
        kv_heads: of the model, or of this rank.
        tables: int32 [blocks of all sequences], their block tables.
        items: int32 [sequences * most parts, FIELDS], of which the first `count` are entries.
        count: int32 [1].
        arrived: int32 [sequences, kv_heads]: of a sequence in several parts, how many are done. Zero before and after each layer.
    """

    sequences: int
    kv_heads: int
    tables: Tensor
    items: Tensor
    count: Tensor
    arrived: Tensor


@triton.jit
def _cut(length, window, limit, SHORTEST: tl.constexpr, DOUBLINGS: tl.constexpr, WINDOWED: tl.constexpr):
    """(first key that is seen, keys of a part, parts) of sequences of these lengths; without keys, one part that is empty, and none
    where the length is negative."""
    low = length * 0
    if WINDOWED:
        low = tl.maximum(length - window, 0)
    span = low * 0 + SHORTEST
    for doubling in tl.static_range(DOUBLINGS):
        span += tl.where(length - low > limit << doubling, SHORTEST << doubling, 0)
    return low, span, tl.where(length < 0, 0, tl.maximum((length - low + span - 1) // span, 1))


@triton.jit(
    do_not_specialize=["sequences", "kv_heads"],
    do_not_specialize_on_alignment=["kv_lengths", "table_starts", "items", "count", "arrived"],
)
def _plan_decode(
    kv_lengths,
    table_starts,
    items,
    count,
    arrived,
    sequences,
    kv_heads,
    window,
    limit,
    SHORTEST: tl.constexpr,
    DOUBLINGS: tl.constexpr,
    FIELDS: tl.constexpr,
    MINE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WINDOWED: tl.constexpr,
):
    mine = tl.program_id(0) * MINE + tl.arange(0, MINE)
    there = mine < sequences
    length = tl.load(kv_lengths + mine, there, 0)
    low, span, parts = _cut(length, window, limit, SHORTEST, DOUBLINGS, WINDOWED)
    first = mine * 0  # entries of longer parts, and of earlier sequences with parts as long
    total = 0
    for start in range(0, sequences, AT_ONCE):
        other = start + tl.arange(0, AT_ONCE)
        real = other < sequences
        _, spans, each = _cut(tl.load(kv_lengths + other, real, 0), window, limit, SHORTEST, DOUBLINGS, WINDOWED)
        each = tl.where(real, each, 0)
        alike = (spans[None, :] == span[:, None]) & (other[None, :] < mine[:, None])
        first += tl.sum(tl.where(alike | (spans[None, :] > span[:, None]), each[None, :], 0), 1)
        total += tl.sum(each, 0)
    if tl.program_id(0) == 0:
        tl.store(count, total)
    for start in range(0, kv_heads, MINE):
        head = start + tl.arange(0, MINE)
        places = arrived + (mine * kv_heads)[:, None] + head[None, :]
        tl.store(places, tl.zeros([MINE, MINE], tl.int32), there[:, None] & (head < kv_heads)[None, :])
    table = tl.load(table_starts + mine, there, 0)
    for start in range(0, tl.max(tl.where(there, parts, 0), 0), MINE):
        part = start + tl.arange(0, MINE)[None, :]
        inside = there[:, None] & (part < parts[:, None])
        entry = items + (first[:, None] + part) * FIELDS
        begin = low[:, None] + part * span[:, None]
        none = part * 0
        tl.store(entry, mine[:, None] + none, inside)
        tl.store(entry + 1, table[:, None] + none, inside)
        tl.store(entry + 2, begin, inside)
        tl.store(entry + 3, tl.minimum(begin + span[:, None], length[:, None]), inside)
        tl.store(entry + 4, first[:, None] + none, inside)
        tl.store(entry + 5, parts[:, None] + none, inside)


def plan_decode(
    kv_lengths: Tensor, table_starts: Tensor, tables: Tensor, *, kv_heads: int, longest_kv: int, window: int = 0
) -> DecodeWork:
    """Split the keys of one row per sequence, for all layers with this window; never waits for the device.

    Args:
        kv_lengths: int32 [sequences]; 0 for a padding row of a CUDA graph, whose result is zeros; -1 for a row that is none of
            these, and has no result.
        table_starts: int32 [sequences]: where each sequence's block table begins in `tables`.
        tables: int32 [blocks of all sequences]; entry i of a sequence holds positions [i * block_size, (i + 1) * block_size).
        kv_heads: of the pool.
        longest_kv: the largest of `kv_lengths`, or more: room for entries and partial states. No result depends on it.
        window: how many of the newest positions a row sees, its own included; 0 for all.

    Raises:
        ValueError: lengths and tables are not of the same sequences, or of another type or layout.
    """
    sequences = len(kv_lengths)
    if kv_lengths.shape != table_starts.shape or tables.dim() != 1 or tables.stride(0) != 1:
        raise ValueError(
            f"{sequences} kv_lengths, {len(table_starts)} table_starts (as many), "
            f"tables {tuple(tables.shape)} (one row, contiguous)"
        )
    if {kv_lengths.dtype, table_starts.dtype, tables.dtype} != {torch.int32}:
        raise ValueError("kv_lengths, table_starts and tables must be int32")
    room = sequences * most_parts(min(longest_kv, window) if window else longest_kv, kv_heads)
    work = DecodeWork(
        sequences=sequences,
        kv_heads=kv_heads,
        tables=tables,
        items=tables.new_empty((room, FIELDS)),
        count=tables.new_empty(1),
        arrived=tables.new_empty((sequences, kv_heads)),
    )
    if sequences:
        _plan_decode[(triton.cdiv(sequences, SEQUENCES_EACH),)](
            kv_lengths,
            table_starts,
            work.items,
            work.count,
            work.arrived,
            sequences,
            kv_heads,
            window,
            _limit(kv_heads),
            SHORTEST=SHORTEST,
            DOUBLINGS=_DOUBLINGS,
            FIELDS=FIELDS,
            MINE=SEQUENCES_EACH,
            AT_ONCE=_AT_ONCE,
            WINDOWED=window > 0,
            num_warps=4,
        )
    return work


def _variant(name: str, *, windowed: bool) -> Variant:
    return Variant(
        name,
        _plan_decode,
        dict.fromkeys(("kv_lengths", "table_starts", "items", "count", "arrived"), "*i32")
        | dict.fromkeys(("sequences", "kv_heads", "window", "limit"), "i32"),
        {
            "SHORTEST": SHORTEST,
            "DOUBLINGS": _DOUBLINGS,
            "FIELDS": FIELDS,
            "MINE": SEQUENCES_EACH,
            "AT_ONCE": _AT_ONCE,
            "WINDOWED": windowed,
        },
    )


VARIANTS: tuple[Variant, ...] = (_variant("all keys", windowed=False), _variant("window", windowed=True))
