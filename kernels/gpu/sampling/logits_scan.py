"""One pass over the logits of every row, split into tiles: what settles greedy and unlimited rows, and bounds the others.

`scan_kernel` reads a tile of `BLOCK` tokens and leaves its largest (penalized) logit and that token's id, whether a value is not
finite, and, in rows that draw, the tile's mass or its winner of the Gumbel-max trick (`kernels.gpu.sampling.gumbel`).
`settle_kernel` joins a row's tiles:

- health: a NaN or +inf anywhere gives `NOT_FINITE`, nothing above -inf gives `ALL_MASKED`, in place of a token;
- temperature 0: the largest logit, the lowest id among equals;
- no top_k, top_p or min_p: the largest of the tiles' winners;
- else `PENDING`, and a bound below which no token can be drawn, for `kernels.gpu.sampling.top_k_top_p`: for
  top_k, the k-th largest maximum over groups of `GROUP` tokens, since at least k tokens reach it; for min_p, its definition; for
  top_p alone, weights under (1 - p) * total / vocab weigh less than (1 - p) * total together, so the nucleus lies above.

Within a tile log-weights are relative to the tile's own peak: no overflow, whatever the temperature. Shapes: logits [rows,
vocab], any float type; partials [rows, tiles]. A row's results depend on that row alone: tiles are a function of the
vocabulary, sums are trees.

Floor: rows * vocab * bytes per value over bandwidth: 128 rows of 128256 in fp32, 66 MB, 14 us at 4.8 TB/s; 1/32 of that is
written if rows are limited. Drawing adds about 40 instructions per token, nearly that time again on an H100: only rows that draw
pay for it.
"""

import triton
import triton.language as tl

from kernels.gpu.runtime import Variant
from kernels.gpu.sampling.gumbel import tile_gumbel
from kernels.gpu.sampling.penalties import (
    FLOATS,
    INTS,
    LOG_MIN_P,
    POSITION,
    SEED,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    edited,
)

BLOCK = 4096  # tokens per tile: 16 values per thread of 8 warps
GROUP = 64  # tokens per group: 2004 maxima for 128256, searched in registers
WARPS = 8

ALL_MASKED = tl.constexpr(-1)
NOT_FINITE = tl.constexpr(-2)
PENDING = tl.constexpr(-3)
TINIEST = tl.constexpr(1.1754943508222875e-38)  # a lower temperature is zero in fp32 arithmetic that flushes subnormals
NOWHERE = tl.constexpr(2**31 - 1)

# Scratch of all rows in one piece, and rows of a longer batch: whether these are aligned changes with the number of rows, which
# must not cause another build of a kernel.
UNALIGNED = (
    *("peaks", "peak_ids", "masses", "scores", "winners", "faults", "listed", "tokens", "floats", "ints"),
    *("row_peaks", "row_totals", "bounds"),
)


def padded(tiles: int) -> int:
    """The width at which a program takes one value of each of a row's `tiles`: at least a warp, below which Triton 3.6 spills."""
    width: int = triton.next_power_of_2(tiles)
    return max(width, 32)


@triton.jit
def is_limited(floats, ints, row, vocab):
    """Whether top_k, top_p or min_p limits the row."""
    top_k = tl.load(ints + row * INTS + TOP_K)
    top_p = tl.load(floats + row * FLOATS + TOP_P)
    log_min_p = tl.load(floats + row * FLOATS + LOG_MIN_P)
    return ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (log_min_p > float("-inf"))


@triton.jit
def ordered(x):
    """int32 keys in the order of the fp32 values `x` (no NaN)."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0 equals 0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def value_of(key):
    """The fp32 value of an int32 key."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def scan_kernel(
    logits,
    counts,
    floats,
    ints,
    peaks,
    peak_ids,
    masses,
    scores,
    winners,
    faults,
    group_peaks,
    row_stride,
    vocab,
    tiles,
    PENALIZE: tl.constexpr,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tile of one row."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    start = tile * BLOCK
    tokens = start + tl.arange(0, BLOCK)
    x = edited(logits, counts, floats, ints, row, tokens, row_stride, vocab, PENALIZE)
    sound = x < float("inf")  # false for NaN, too
    place = row * tiles + tile
    tl.store(faults + place, tl.max(tl.where(sound, 0, 1), 0))
    x = tl.where(sound, x, float("-inf"))
    peak = tl.max(x, 0)
    tl.store(peaks + place, peak)
    tl.store(peak_ids + place, tl.min(tl.where(x == peak, tokens, NOWHERE), 0))
    temperature = tl.load(floats + row * FLOATS + TEMPERATURE)
    if (temperature > 0.0) & (peak > float("-inf")):
        logs = (x - peak) / tl.maximum(temperature, TINIEST)
        if is_limited(floats, ints, row, vocab):
            tl.store(masses + place, tl.sum(tl.exp(logs), 0))
        else:
            seed = tl.load(ints + row * INTS + SEED)
            position = tl.load(ints + row * INTS + POSITION).to(tl.int32)
            score = logs + tile_gumbel(seed, position, start, BLOCK)
            best = tl.max(score, 0)
            tl.store(scores + place, best)
            tl.store(winners + place, tl.min(tl.where(score == best, tokens, NOWHERE), 0))
    if LIMITED:
        groups = tl.max(tl.reshape(x, (BLOCK // GROUP, GROUP)), 1)
        tl.store(group_peaks + place * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP), groups)


@triton.jit
def _kth_largest(values, k):
    """The k-th largest of `values` fp32 [n], or -inf if n is smaller than k. Bisects keys, at most 32 times."""
    keys = ordered(values)
    low = ordered(float("-inf")).to(tl.int64) - 1  # at least k lie above it, if there are k
    high = tl.max(keys, 0).to(tl.int64)  # fewer than k lie above it
    while high - low > 1:
        middle = low + (high - low) // 2
        few = tl.sum((keys > middle.to(tl.int32)).to(tl.int32), 0) < k
        high = tl.where(few, middle, high)
        low = tl.where(few, low, middle)
    return value_of(high.to(tl.int32))


@triton.jit
def _bound(floats, ints, group_peaks, row, peak, temperature, total, vocab, groups, GROUPS: tl.constexpr):
    """A lower bound on the values of all tokens that may be drawn."""
    top_k = tl.load(ints + row * INTS + TOP_K)
    top_p = tl.load(floats + row * FLOATS + TOP_P)
    log_min_p = tl.load(floats + row * FLOATS + LOG_MIN_P)
    bound = peak * 0.0 + float("-inf")
    if (top_k > 0) & (top_k <= groups):
        place = tl.arange(0, GROUPS)
        maxima = tl.load(group_peaks + row * groups + place, place < groups, float("-inf"))
        bound = _kth_largest(maxima, top_k)
    depth = log_min_p
    if ((top_k <= 0) | (top_k >= vocab)) & (log_min_p == float("-inf")):
        depth = tl.log((1.0 - top_p) * total / vocab)
    fall = temperature * depth
    slack = 1e-5 * (tl.abs(peak) - fall) + 1e-30  # more than the roundings of this line and of the definition
    return tl.maximum(bound, peak + fall - slack)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def settle_kernel(
    floats,
    ints,
    peaks,
    peak_ids,
    masses,
    scores,
    winners,
    faults,
    group_peaks,
    tokens,
    row_peaks,
    row_totals,
    bounds,
    vocab,
    tiles,
    groups,
    LIMITED: tl.constexpr,
    TILES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """One row from its tiles: a token, an error code, or `PENDING` with a bound."""
    row = tl.program_id(0).to(tl.int64)
    place = row * tiles + tl.arange(0, TILES)
    inside = tl.arange(0, TILES) < tiles
    tile_peaks = tl.load(peaks + place, inside, float("-inf"))
    peak = tl.max(tile_peaks, 0)
    ids = tl.load(peak_ids + place, inside, NOWHERE)
    token = tl.min(tl.where(tile_peaks == peak, ids, NOWHERE), 0).to(tl.int64)
    temperature = tl.load(floats + row * FLOATS + TEMPERATURE)
    if tl.max(tl.load(faults + place, inside, 0), 0) > 0:
        token = token * 0 + NOT_FINITE
    elif peak == float("-inf"):
        token = token * 0 + ALL_MASKED
    elif temperature > 0.0:
        temperature = tl.maximum(temperature, TINIEST)
        alive = tile_peaks > float("-inf")  # tiles without a token left no other results
        logs = tl.where(alive, (tile_peaks - peak) / temperature, float("-inf"))
        if is_limited(floats, ints, row, vocab):
            token = token * 0 + PENDING
            if LIMITED:
                mass = tl.where(alive, tl.load(masses + place, alive, 0.0), 0.0)
                total = tl.sum((mass * tl.exp(logs)).to(tl.float64), 0).to(tl.float32)
                bound = _bound(floats, ints, group_peaks, row, peak, temperature, total, vocab, groups, GROUPS)
                tl.store(row_peaks + row, peak)
                tl.store(row_totals + row, total)
                tl.store(bounds + row, bound)
        else:
            score = tl.where(alive, logs + tl.load(scores + place, alive, 0.0), float("-inf"))
            winner = tl.load(winners + place, alive, NOWHERE)
            token = tl.min(tl.where(score == tl.max(score, 0), winner, NOWHERE), 0).to(tl.int64)
    tl.store(tokens + row, token)


def _variants(name: str, dtype: str, vocab: int) -> tuple[Variant, ...]:
    tiles = triton.cdiv(vocab, BLOCK)
    partials = {
        "floats": "*fp32", "ints": "*i64", "peaks": "*fp32", "peak_ids": "*i32", "masses": "*fp32", "scores": "*fp32",
        "winners": "*i32", "faults": "*i32", "group_peaks": "*fp32", "vocab": "i32", "tiles": "i32",
    }  # fmt: skip
    scan = Variant(
        name=f"scan {name}",
        kernel=scan_kernel,
        signature={**partials, "logits": f"*{dtype}", "counts": "*i32", "row_stride": "i64"},
        constants={"PENALIZE": True, "LIMITED": True, "BLOCK": BLOCK, "GROUP": GROUP},
        warps=WARPS,
        aligned=("logits", "counts", "row_stride", "vocab", "group_peaks"),
    )
    settle = Variant(
        name=f"settle {name}",
        kernel=settle_kernel,
        signature={
            **partials,
            "tokens": "*i64",
            "row_peaks": "*fp32",
            "row_totals": "*fp32",
            "bounds": "*fp32",
            "groups": "i32",
        },
        constants={
            "LIMITED": True,
            "TILES": padded(tiles),
            "GROUPS": triton.next_power_of_2(tiles * (BLOCK // GROUP)),
        },
        warps=4,
    )
    return scan, settle


VARIANTS = (
    *_variants("llama-8b fp32", "fp32", 128256),
    *_variants("qwen bf16", "bf16", 151936),
    *_variants("smollm2 fp32", "fp32", 49152),
)
