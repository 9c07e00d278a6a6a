"""The log-probability and rank of one given token per row, and the `top` likeliest tokens, under the raw logits.

The same as `engine/sampling/logprobs.py`: logprob = logit - log(sum(exp(logits))), rank = 1 + tokens that are strictly
likelier; equally likely tokens are listed by id, lower first.

`scan_kernel` (one program per tile of `BLOCK` tokens) leaves the tile's peak and mass, how many tokens beat the given one, and
the tile's own `top` likeliest, taken one by one; `join_kernel` (one program per row) takes the row's likeliest from those.
Nothing is sorted.

Shapes: logits [rows, vocab], any float type; tokens int64 [rows]. Floor: one read of the logits; 128 rows of 128256 in fp32, 66
MB, 14 us at 4.8 TB/s; each of the likeliest adds a reduction of the tile in registers, about 0.3 us.
"""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant
from kernels.gpu.sampling.logits_scan import BLOCK, NOWHERE, WARPS, padded

MOST = 128  # the largest `top`: what a row's tiles list then still fits the registers of one program
# As in `kernels.gpu.sampling.logits_scan`.
UNALIGNED = (
    *("tokens", "peaks", "masses", "likelier", "top_values", "top_ids"),
    *("out_logprobs", "out_ranks", "out_values", "out_ids"),
)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def scan_kernel(
    logits,
    tokens,
    peaks,
    masses,
    likelier,
    top_values,
    top_ids,
    row_stride,
    vocab,
    tiles,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile's peak, mass, tokens likelier than the given one, and likeliest tokens."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    ids = tile * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * row_stride + ids, ids < vocab, float("-inf")).to(tl.float32)
    place = row * tiles + tile
    peak = tl.max(x, 0)
    tl.store(peaks + place, peak)
    tl.store(masses + place, tl.sum(tl.exp(x - tl.maximum(peak, -3.0e38)), 0))  # an empty tile weighs nothing
    token = tl.load(tokens + row)
    chosen = tl.load(logits + row * row_stride + token, token >= 0, float("inf")).to(tl.float32)
    tl.store(likelier + place, tl.sum((x > chosen).to(tl.int32), 0))
    for index in range(TOP):
        best = tl.max(x, 0)
        first = tl.min(tl.where(x == best, ids, NOWHERE), 0)
        tl.store(top_values + place * TOP + index, best)
        tl.store(top_ids + place * TOP + index, first)
        x = tl.where(ids == first, float("-inf"), x)


@triton.jit(do_not_specialize_on_alignment=UNALIGNED)
def join_kernel(
    logits,
    tokens,
    peaks,
    masses,
    likelier,
    top_values,
    top_ids,
    out_logprobs,
    out_ranks,
    out_values,
    out_ids,
    row_stride,
    tiles,
    TOP: tl.constexpr,
    TILES: tl.constexpr,
    LISTED: tl.constexpr,
):
    """One row's results from its tiles'."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.arange(0, TILES)
    tile_peaks = tl.load(peaks + row * tiles + tile, tile < tiles, float("-inf"))
    mass = tl.load(masses + row * tiles + tile, tile < tiles, 0.0)
    peak = tl.max(tile_peaks, 0)
    total = tl.sum((mass * tl.exp(tile_peaks - peak)).to(tl.float64), 0).to(tl.float32)
    normalizer = peak + tl.log(total)
    token = tl.load(tokens + row)
    chosen = tl.load(logits + row * row_stride + token, token >= 0, float("-inf")).to(tl.float32)
    rank = tl.sum(tl.load(likelier + row * tiles + tile, tile < tiles, 0), 0) + 1
    tl.store(out_logprobs + row, chosen - normalizer)
    tl.store(out_ranks + row, tl.where(token >= 0, rank, 0))
    if TOP > 0:
        place = tl.arange(0, LISTED)
        values = tl.load(top_values + row * tiles * TOP + place, place < tiles * TOP, float("-inf"))
        ids = tl.load(top_ids + row * tiles * TOP + place, place < tiles * TOP, NOWHERE)
        for index in range(TOP):
            best = tl.max(values, 0)
            first = tl.min(tl.where(values == best, ids, NOWHERE), 0)
            tl.store(out_values + row * TOP + index, best - normalizer)
            tl.store(out_ids + row * TOP + index, tl.where(best > float("-inf"), first, -1))
            values = tl.where(ids == first, float("-inf"), values)


def token_logprobs(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(logprobs fp32 [rows], ranks int32 [rows], ids int32 [rows, top], their logprobs fp32 [rows, top]); no host sync.

    Args:
        logits: [rows, vocab], any float type, columns contiguous, no NaN; each row has a finite value.
        tokens: int64 [rows]. A negative one (an error code of `sample`) gets -inf and rank 0.
        top: how many of the likeliest, 0 to 128. If fewer are above -inf, the last ids are -1 with -inf.

    Raises:
        ValueError: `top` is out of its range or more than the vocabulary.
    """
    rows, vocab = logits.shape
    if not 0 <= top <= min(MOST, vocab):
        raise ValueError(f"top is {top}: 0 to {min(MOST, vocab)} can be listed")
    tiles = triton.cdiv(vocab, BLOCK)
    real, whole = partial(logits.new_empty, dtype=torch.float32), partial(logits.new_empty, dtype=torch.int32)
    peaks, masses = real((2, rows, tiles))
    likelier = whole((rows, tiles))
    tile_values, tile_ids = real((rows, tiles, top)), whole((rows, tiles, top))
    logprobs, ranks = real((rows,)), whole((rows,))
    values, ids = real((rows, top)), whole((rows, top))
    if rows:
        partials = (peaks, masses, likelier, tile_values, tile_ids)
        scan_kernel[(rows, tiles)](
            logits, tokens, *partials, logits.stride(0), vocab, tiles, TOP=top, BLOCK=BLOCK, num_warps=WARPS
        )
        join_kernel[(rows,)](
            logits, tokens, *partials, logprobs, ranks, values, ids, logits.stride(0), tiles,
            TOP=top, TILES=padded(tiles), LISTED=triton.next_power_of_2(tiles * max(top, 1)), num_warps=4,
        )  # fmt: skip
    return logprobs, ranks, ids, values


def reference_token_logprobs(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What `token_logprobs` computes, in plain torch, for tokens that are not error codes."""
    every = logits.float().log_softmax(dim=-1)
    chosen = every.gather(1, tokens.unsqueeze(1))
    ranks = (logits > logits.gather(1, tokens.unsqueeze(1))).sum(dim=-1, dtype=torch.int32) + 1
    values, ids = every.sort(dim=-1, descending=True, stable=True)
    return chosen.squeeze(1), ranks, ids[:, :top].int(), values[:, :top]


def _variants(name: str, dtype: str, vocab: int, top: int) -> tuple[Variant, ...]:
    tiles = triton.cdiv(vocab, BLOCK)
    signature = {
        "logits": f"*{dtype}", "tokens": "*i64", "peaks": "*fp32", "masses": "*fp32", "likelier": "*i32", "top_values": "*fp32",
        "top_ids": "*i32", "out_logprobs": "*fp32", "out_ranks": "*i32", "out_values": "*fp32", "out_ids": "*i32",
        "row_stride": "i64", "vocab": "i32", "tiles": "i32",
    }  # fmt: skip
    listed = triton.next_power_of_2(tiles * max(top, 1))
    join = {"TOP": top, "TILES": padded(tiles), "LISTED": listed}
    aligned = ("logits", "row_stride", "vocab")
    return (
        Variant(f"scan {name} top {top}", scan_kernel, signature, {"TOP": top, "BLOCK": BLOCK}, WARPS, aligned=aligned),
        Variant(f"join {name} top {top}", join_kernel, signature, join, 4, aligned=aligned[:2]),
    )


VARIANTS = (
    *_variants("llama-8b fp32", "fp32", 128256, 0),
    *_variants("llama-8b fp32", "fp32", 128256, 20),
    *_variants("qwen bf16", "bf16", 151936, 20),
    *_variants("qwen bf16", "bf16", 151936, MOST),
    *_variants("smollm2 fp32", "fp32", 49152, 20),
)
