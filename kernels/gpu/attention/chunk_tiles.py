"""What a program of `paged_attention` finds to do, and where its result goes: tiles of chunks, and parts of tiles.

Without a list of pieces a program counts tiles to find its own; with one (`chunk_work.plan_chunks`) its entry says all.

Device functions only.
"""

import triton
import triton.language as tl

from kernels.gpu.attention.tile import NOTHING

_COUNTED: tl.constexpr = tl.constexpr(128)  # sequences looked at in one go when a tile looks for its own


@triton.jit
def find_tile(wanted, row_starts, sequences, ROWS: tl.constexpr):
    """(sequence, first row of the tile in it, rows of the sequence) of tile `wanted`; past the last tile, sequence == `sequences`.

    A sequence of n rows has ceil(n / ROWS) tiles. The tile of its last rows comes first, because it sees the most keys.
    """
    sequence = 0
    before = 0  # tiles of all earlier sequences
    counted = 0
    for first in range(0, sequences, _COUNTED):
        index = first + tl.arange(0, _COUNTED)
        real = index < sequences
        rows = tl.load(row_starts + index + 1, real, 0) - tl.load(row_starts + index, real, 0)
        tiles = (rows + ROWS - 1) // ROWS
        ends = counted + tl.cumsum(tiles, 0)
        passed = real & (ends <= wanted)
        sequence += tl.sum(passed.to(tl.int32), 0)
        before = tl.maximum(before, tl.max(tl.where(passed, ends, 0), 0))
        counted += tl.sum(tiles, 0)
    count = 0
    if sequence < sequences:
        count = tl.load(row_starts + sequence + 1) - tl.load(row_starts + sequence)
    last = (count + ROWS - 1) // ROWS - 1
    return sequence, (last - (wanted - before)) * ROWS, count


@triton.jit
def visible_keys(
    length, oldest, window, ROWS: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr
):
    """(low, high, left, right) for a tile whose first row is at position `oldest`. Its rows see keys within [low, high);
    [left, right) are whole tiles of keys that every row sees in full."""
    newest = tl.minimum(oldest + ROWS, length) - 1
    low, high, left, right = 0, length, 0, length // BLOCK_N * BLOCK_N
    if CAUSAL:
        high = newest + 1
        right = (oldest + 1) // BLOCK_N * BLOCK_N
    if WINDOWED:
        low = tl.maximum(oldest - window + 1, 0)
        left = tl.cdiv(tl.maximum(newest - window + 1, 0), BLOCK_N) * BLOCK_N
    return low, high, left, tl.maximum(left, right)


@triton.jit
def find_piece(items, row_starts, sequences, ROWS: tl.constexpr, FIELDS: tl.constexpr):
    """`find_tile` of this program, or what its entry in the list says."""
    if items is None:
        sequence, first, count = find_tile(tl.program_id(0), row_starts, sequences, ROWS)
    else:
        entry = items + tl.program_id(0) * FIELDS
        sequence, first = tl.load(entry), tl.load(entry + 1)
        count = tl.load(row_starts + sequence + 1) - tl.load(row_starts + sequence)
    return sequence, first, count


@triton.jit
def keys_of_piece(items, low, high, left, right, FIELDS: tl.constexpr):
    """What a part has of the `visible_keys` of its tile."""
    if items is not None:
        entry = items + tl.program_id(0) * FIELDS
        start, stop = tl.load(entry + 2), tl.load(entry + 3)
        low, high = tl.maximum(low, start), tl.minimum(high, stop)
        left, right = tl.minimum(tl.maximum(left, start), stop), tl.minimum(tl.maximum(right, start), stop)
    return low, high, left, right


@triton.jit
def hand_in(
    items,
    arrived,
    states,
    sums,
    out,
    log_sums,
    result,
    log_sum,
    mine,
    row,
    head,
    rows,
    heads,
    FIELDS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store the result of a tile's only part, or the state of one of several; the last of these merges all. `out` and `log_sums`
    are where each row's go; `row` and `head` are those of each row of the tile, which has `rows` rows of `heads` heads."""
    if items is None:
        store_rows(out, log_sums, result, log_sum, mine, D, 0, D_PAD)
    else:
        entry = items + tl.program_id(0) * FIELDS
        part, parts = tl.load(entry + 4), tl.load(entry + 5)
        if parts == 1:
            store_rows(out, log_sums, result, log_sum, mine, D, 0, D_PAD)
        else:
            state = (tl.load(entry + 7) + row).to(tl.int64) * heads + head
            here = state + part.to(tl.int64) * rows * heads
            store_rows(states + here * D, sums + here, result, log_sum, mine, D, 0, D_PAD)
            tl.debug_barrier()  # one thread says for all of them that the state is there
            done = arrived + tl.load(entry + 6) * tl.num_programs(1) + tl.program_id(1)
            if tl.atomic_add(done, 1, sem="acq_rel") == parts - 1:
                tl.store(done, 0)  # for the next layer
                for column in range(0, D_PAD, COLUMNS):
                    merge_tile(out, log_sums, states, sums, state, rows * heads, parts, mine, column, D, COLUMNS)


@triton.jit
def store_rows(places, log_sums, values, sums, mine, D: tl.constexpr, column, WIDTH: tl.constexpr):
    """Store columns from `column` on, [M, WIDTH], of the rows that are there, at `places` [M]."""
    dims = column + tl.arange(0, WIDTH)
    wanted = mine[:, None] & (dims < D)[None, :]
    tl.store(places[:, None] + dims[None, :], values.to(places.dtype.element_ty), mask=wanted)
    if log_sums is not None:
        tl.store(log_sums, sums, mask=mine)


@triton.jit
def merge_tile(
    out,
    log_sums,
    states,
    sums,
    state,
    each,
    parts,
    mine,
    column,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Merge some columns of a tile's parts, in the order of the keys; each row by itself, as `merge_states.merged` does. What other
    programs have written is read from L2, where it is."""
    dims = column + tl.arange(0, WIDTH)
    wanted = mine[:, None] & (dims < D)[None, :]
    BLOCK_M: tl.constexpr = mine.shape[0]
    acc = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    top = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for part in range(parts):
        here = state + part * each
        log_sum = tl.load(sums + here, mine, float("-inf"), cache_modifier=".cg")
        value = tl.load(states + (here * D)[:, None] + dims[None, :], wanted, 0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, log_sum)
        weight = tl.exp(log_sum - new_top)
        shrink = tl.exp(top - new_top)
        total = total * shrink + weight
        acc = acc * shrink[:, None] + value * weight[:, None]
        top = new_top
    weight = tl.where(total > 0, total, 1.0)
    log_sum = tl.where(total > 0, top + tl.log(weight), float("-inf"))
    store_rows(out, log_sums, acc / weight[:, None], log_sum, mine, D, column, WIDTH)
