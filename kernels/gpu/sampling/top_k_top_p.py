"""min_p, top_k and top_p without a sort, and the draw among what they leave, for the rows that
`kernels.gpu.sampling.logits_scan` left pending.

Definitions and order of `engine/sampling/top_k_top_p.py`: on logits over temperature, min_p (keep p >= min_p * p_max), then
top_k, then top_p on what is left, renormalized (the fewest likeliest tokens whose mass reaches top_p, at least one). Each keeps
a prefix of the ranking by (value, lower id first), so a row's answer is a value, the border, and how many of the tokens equal
to it stay.

1. `count_kernel`, `collect_kernel` (one program per tile; tiles whose peak is below the bound are not read): the tokens that
   reach the row's bound, and min_p, go to one dense list per row, ids ascending. For a language model's rows, these are tens to
   a few thousand tokens.
2. `choose_kernel` (one program per row) bisects the ordered integer keys of the listed fp32 values for the smallest border above
   which fewer than k tokens lie, then for the smallest above which less than the wanted mass lies; it stops when a single token
   is left between its two pivots (two pivots as in the sampling kernels of FlashInfer, Ye et al. 2025; there they reject draws,
   here they close in on the exact border). Equal values are ranked by place in the list, which is by id. The last pass is the
   Gumbel-max trick among the kept tokens.

Exactness: comparisons and counts are exact; masses are fp32 weights summed in fp64 (the whole row's, for top_p alone, as a sum
of fp32 sums of tiles), so a token whose share of mass lies within about 1e-6 of top_p may fall to either side, but always to
the same one.

Shapes: listed values fp32 and ids int32 [rows, vocab], of which only the listed part is touched. Floor: one more read of the
tiles that hold candidates (66 MB for 128 rows of 128256, 14 us at 4.8 TB/s, if every tile does; twice, because the count comes
first), and about 15 to 25 passes over the list, which stays in the nearest cache; a list of everything (flat rows) costs 25
times 0.5 MB per row.
"""

import triton
import triton.language as tl

from kernels.gpu.runtime import Variant
from kernels.gpu.sampling.gumbel import gumbel
from kernels.gpu.sampling.logits_scan import (
    BLOCK,
    NOWHERE,
    PENDING,
    TINIEST,
    UNALIGNED,
    WARPS,
    ordered,
    padded,
    value_of,
)
from kernels.gpu.sampling.penalties import FLOATS, INTS, LOG_MIN_P, POSITION, SEED, TEMPERATURE, TOP_K, TOP_P, edited

CHUNK = 2048  # listed tokens that a pass takes at once


@triton.jit
def _listed(logits, counts, floats, ints, row_peaks, bounds, row, tokens, row_stride, vocab, PENALIZE: tl.constexpr):
    """(logits of `tokens`, which of them are listed)."""
    x = edited(logits, counts, floats, ints, row, tokens, row_stride, vocab, PENALIZE)
    temperature = tl.maximum(tl.load(floats + row * FLOATS + TEMPERATURE), TINIEST)
    logs = (x - tl.load(row_peaks + row)) / temperature
    likely = logs >= tl.load(floats + row * FLOATS + LOG_MIN_P)
    return x, (x > float("-inf")) & likely & (x >= tl.load(bounds + row))


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def count_kernel(
    logits,
    counts,
    floats,
    ints,
    peaks,
    row_peaks,
    bounds,
    tokens,
    listed,
    row_stride,
    vocab,
    tiles,
    PENALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many tokens of one tile are to be listed."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    if tl.load(tokens + row) == PENDING:
        n = 0
        if tl.load(peaks + row * tiles + tile) >= tl.load(bounds + row):
            ids = tile * BLOCK + tl.arange(0, BLOCK)
            _, keep = _listed(logits, counts, floats, ints, row_peaks, bounds, row, ids, row_stride, vocab, PENALIZE)
            n = tl.sum(keep.to(tl.int32), 0)
        tl.store(listed + row * tiles + tile, n)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def collect_kernel(
    logits,
    counts,
    floats,
    ints,
    row_peaks,
    bounds,
    tokens,
    listed,
    values,
    value_ids,
    row_stride,
    vocab,
    tiles,
    PENALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """List one tile's tokens after those of earlier tiles."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    if (tl.load(tokens + row) == PENDING) & (tl.load(listed + row * tiles + tile) > 0):
        place = tl.arange(0, TILES)
        start = tl.sum(tl.load(listed + row * tiles + place, place < tile, 0), 0)
        ids = tile * BLOCK + tl.arange(0, BLOCK)
        x, keep = _listed(logits, counts, floats, ints, row_peaks, bounds, row, ids, row_stride, vocab, PENALIZE)
        slot = row * vocab + start + tl.cumsum(keep.to(tl.int32), 0) - 1
        tl.store(values + slot, x, keep)
        tl.store(value_ids + slot, ids, keep)


@triton.jit
def _above(values, n, peak, temperature, pivot, CHUNK: tl.constexpr):
    """(how many of the listed `values` have a key above `pivot`, their mass)."""
    count = tl.full((), 0, tl.int32)
    mass = tl.full((), 0.0, tl.float64)
    for start in range(0, n, CHUNK):
        place = start + tl.arange(0, CHUNK)
        x = tl.load(values + place, place < n, float("-inf"))
        above = ordered(x) > pivot
        weight = tl.where(above, tl.exp((x - peak) / temperature), 0.0)
        count += tl.sum(above.to(tl.int32), 0)
        mass += tl.sum(weight.to(tl.float64), 0)
    return count, mass


@triton.jit
def _border(values, n, peak, temperature, floor, over_floor, limit, target, CHUNK: tl.constexpr):
    """The border in the ranking: (key, tokens equal to it, tokens above it, mass above it).

    It is the smallest listed key above `floor` with fewer than `limit` tokens and less than `target` mass above it.
    `over_floor`: how many tokens lie above `floor`; at least one does.
    """
    low, high = floor.to(tl.int64), ordered(peak).to(tl.int64)
    over_low, over_high = over_floor, over_floor * 0
    mass_high = tl.full((), 0.0, tl.float64)
    while (high - low > 1) & (over_low - over_high > 1):
        middle = low + (high - low) // 2
        count, mass = _above(values, n, peak, temperature, middle.to(tl.int32), CHUNK)
        fits = (count < limit) & (mass < target)
        high = tl.where(fits, middle, high)
        over_high = tl.where(fits, count, over_high)
        mass_high = tl.where(fits, mass, mass_high)
        low = tl.where(fits, low, middle)
        over_low = tl.where(fits, over_low, count)
    key = floor
    for start in range(0, n, CHUNK):  # all tokens above `low` and up to `high` are equal: find their value
        place = start + tl.arange(0, CHUNK)
        keys = ordered(tl.load(values + place, place < n, float("-inf")))
        key = tl.maximum(key, tl.max(tl.where(keys <= high.to(tl.int32), keys, floor), 0))
    return key, over_low - over_high, over_high, mass_high


@triton.jit
def _gumbel_max(values, value_ids, n, peak, temperature, seed, position, border, ties, CHUNK: tl.constexpr):
    """The winner among listed tokens above the key `border` and the first `ties` equal to it."""
    best = tl.full((), float("-inf"), tl.float32)
    winner = tl.full((), NOWHERE, tl.int32)
    met = tl.full((), 0, tl.int32)
    for start in range(0, n, CHUNK):
        place = start + tl.arange(0, CHUNK)
        x = tl.load(values + place, place < n, float("-inf"))
        ids = tl.load(value_ids + place, place < n, 0)
        keys = ordered(x)
        equal = ((keys == border) & (place < n)).to(tl.int32)
        rank = met + tl.cumsum(equal, 0)
        keep = (place < n) & ((keys > border) | ((equal > 0) & (rank <= ties)))
        score = (x - peak) / temperature + gumbel(seed, position, ids)
        score = tl.where(keep, score, float("-inf"))
        chunk_best = tl.max(score, 0)
        first = tl.min(tl.where(score == chunk_best, ids, NOWHERE), 0)
        winner = tl.where(chunk_best > best, first, winner)
        best = tl.maximum(best, chunk_best)
        met += tl.sum(equal, 0)
    return winner


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def choose_kernel(
    floats,
    ints,
    row_peaks,
    row_totals,
    bounds,
    tokens,
    listed,
    values,
    value_ids,
    vocab,
    tiles,
    TILES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Find one row's border in its list, and draw."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(tokens + row) == PENDING:
        tile = tl.arange(0, TILES)
        n = tl.sum(tl.load(listed + row * tiles + tile, tile < tiles, 0), 0)
        values += row * vocab
        value_ids += row * vocab
        peak = tl.load(row_peaks + row)
        temperature = tl.maximum(tl.load(floats + row * FLOATS + TEMPERATURE), TINIEST)
        top_k = tl.load(ints + row * INTS + TOP_K)
        top_p = tl.load(floats + row * FLOATS + TOP_P)
        nothing = ordered(peak * 0.0 + float("-inf"))  # no listed key is that small: everything is above this border
        border, ties = nothing, n * 0
        floor = tl.maximum(ordered(tl.load(bounds + row)), nothing + 1) - 1
        over_floor = n
        above, mass = n, tl.full((), 0.0, tl.float64)
        if (top_k > 0) & (top_k < n):
            border, equal, above, mass = _border(values, n, peak, temperature, floor, n, top_k, float("inf"), CHUNK)
            ties = (top_k - above).to(tl.int32)
            floor, over_floor = border - 1, above + equal
        if top_p < 1.0:
            if (top_k > 0) & (top_k < n):
                total = mass + ties * tl.exp((value_of(border) - peak) / temperature).to(tl.float64)
            elif ((top_k > 0) & (top_k < vocab)) | (tl.load(floats + row * FLOATS + LOG_MIN_P) > float("-inf")):
                _, total = _above(values, n, peak, temperature, nothing, CHUNK)
            else:
                total = tl.load(row_totals + row).to(tl.float64)
            target = tl.maximum(top_p * total, 1e-30)
            cut, equal, above, mass = _border(values, n, peak, temperature, floor, over_floor, n + 1, target, CHUNK)
            weight = tl.exp((value_of(cut) - peak) / temperature).to(tl.float64)
            need = tl.ceil((target - mass) / tl.maximum(weight, 1e-30))
            most = tl.where(cut == border, ties, equal)
            ties = tl.maximum(tl.minimum(need, most.to(tl.float64)), 1.0).to(tl.int32)
            border = cut
        seed = tl.load(ints + row * INTS + SEED)
        position = tl.load(ints + row * INTS + POSITION).to(tl.int32)
        winner = _gumbel_max(values, value_ids, n, peak, temperature, seed, position, border, ties, CHUNK)
        tl.store(tokens + row, winner.to(tl.int64))


def _variants(name: str, dtype: str, vocab: int) -> tuple[Variant, ...]:
    row = {
        "floats": "*fp32", "ints": "*i64", "peaks": "*fp32", "row_peaks": "*fp32", "row_totals": "*fp32", "bounds": "*fp32",
        "tokens": "*i64", "listed": "*i32", "values": "*fp32", "value_ids": "*i32", "vocab": "i32", "tiles": "i32",
        "logits": f"*{dtype}", "counts": "*i32", "row_stride": "i64",
    }  # fmt: skip
    tiles = padded(triton.cdiv(vocab, BLOCK))
    aligned = ("logits", "counts", "row_stride", "vocab", "values", "value_ids")
    tile = {"PENALIZE": True, "BLOCK": BLOCK}
    return (
        Variant(f"count {name}", count_kernel, row, tile, WARPS, aligned=aligned[:4]),
        Variant(f"collect {name}", collect_kernel, row, {**tile, "TILES": tiles}, WARPS, aligned=aligned),
        Variant(f"choose {name}", choose_kernel, row, {"TILES": tiles, "CHUNK": CHUNK}, WARPS, aligned=aligned[3:]),
    )


VARIANTS = (
    *_variants("llama-8b fp32", "fp32", 128256),
    *_variants("qwen bf16", "bf16", 151936),
    *_variants("smollm2 fp32", "fp32", 49152),
)
