"""Keys and values into blocks of 8-bit floats (e4m3) with one scale per block, head and side, while the blocks fill.

The scale of a block that fills token by token has to be fixed before its values are known. The choices:
- *By calibration, or 1*: needs data that nobody has when loading, and clips what exceeds it.
- *By the block's first token, with room to spare*: a prompt's first token has values far smaller than the others' (attention sinks,
  Xiao et al., arXiv 2309.17453, section 3.1; their values: Guo et al., arXiv 2410.13835): the block that all heads read would clip.
- *By the full block, in 16 bits until then*: a second pool for blocks being filled, and a second way to read in every kernel.
- **Grow** (here): the scale follows the largest value so far. If a token exceeds it, the block's program rewrites the earlier
  tokens with the larger scale. That is rare: the largest value must double.

Growing is sound because scales are powers of two and quantizing composes (kernels/gpu/e4m3.py): the codes and the scale of a block
are the same function of its tokens' values whether these came one by one, in chunks or all at once. Nothing ever clips, and
rewriting adds no error. So a full block has the same bytes after prefill, decode or recomputation of the same values, as
content-addressed blocks require. Only tokens that were written and then taken back (rejected drafts) leave a trace: a scale
larger than the rest needs. But what a *row* reads depends on how full its block was when it read: values below 2^-6 of the scale
lose digits as the scale grows. So results with an 8-bit cache may depend on how a prompt is cut into chunks.
Error: 2^-4 of the value, or 2^-9 of the scale if that is more; the scale is at most 2^-7 of the block's largest value.

One program per row, side and head; that of a block's first row in this launch works for all rows of the block, the others return.
Hence the rows of a block must be adjacent, in the order of their offsets, as the rows of a sequence are.

Floor: rows * 2 kv_heads * dim * (bytes per value + 1) over memory bandwidth; Llama-3-8B bf16, 8192 rows: 50 MB, 13 us at 4 TB/s.
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.e4m3 import (
    decoded,
    encoded,
    finite_size,
    inverse_of,
    reference_encoded,
    reference_scale,
    reference_shortened,
    scale_of,
    shortened,
)
from kernels.gpu.kv.head_tile import load_halves, norm_halves, store_halves, turn_halves, variants
from kernels.gpu.runtime import Variant


@triton.jit
def _rescale(codes, count, factor, token_stride, DIM: tl.constexpr, LINES: tl.constexpr, HALF: tl.constexpr):
    """Multiply the first `count` tokens of a block by `factor`, a power of two below 1."""
    lines, columns = tl.arange(0, LINES), tl.arange(0, 2 * HALF)
    inside = (lines < count)[:, None] & (columns < DIM)[None, :]
    at = codes + lines[:, None] * token_stride + columns[None, :]
    tl.store(at, encoded(decoded(tl.load(at, inside, 0)) * factor), inside)


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["positions", "slots"])
def _fill_blocks(
    qkv,
    codes,
    scales,
    positions,
    slots,
    cos,
    sin,
    k_norm,
    eps,
    rows,
    qkv_stride,
    block_stride,
    part_stride,
    head_stride,
    token_stride,
    scale_block_stride,
    scale_part_stride,
    scale_head_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LINES: tl.constexpr,
    HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    side = tl.program_id(1) // KV_HEADS  # 0: keys, 1: values
    head = tl.program_id(1) % KV_HEADS
    slot = tl.load(slots + row)
    before = tl.load(slots + tl.maximum(row - 1, 0))
    block, first = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    leads = (row == 0) | (before < 0) | (before // BLOCK_SIZE != block)
    if (slot >= 0) & leads:
        line = row + tl.arange(0, LINES)
        theirs = tl.load(slots + line, line < rows, -1)
        mine = (theirs >= 0) & (theirs // BLOCK_SIZE == block)
        start = line * qkv_stride + (HEADS + tl.program_id(1)) * DIM
        low, high = load_halves(qkv, start, mine, DIM, HALF)
        if side == 0:
            if NORMS:
                low, high = norm_halves(low, high, k_norm, eps, DIM, HALF)
            low, high = turn_halves(low, high, cos, sin, tl.load(positions + line, mine, 0), mine, DIM, HALF)
        low, high = shortened(low), shortened(high)
        scale = scale_of(tl.max(tl.max(tl.maximum(finite_size(low), finite_size(high)), 1), 0))
        scale_at = scales + block * scale_block_stride + side * scale_part_stride + head * scale_head_stride
        base = codes + block * block_stride + side * part_stride + head * head_stride
        if first > 0:
            old = tl.load(scale_at)
            scale = tl.maximum(scale, old)
            if scale > old:
                _rescale(base, first, old * inverse_of(scale), token_stride, DIM, LINES, HALF)
        tl.debug_barrier()  # all threads must have read the old scale before one of them writes the new one
        tl.store(scale_at, scale)
        inverse = inverse_of(scale)
        at = theirs % BLOCK_SIZE * token_stride
        store_halves(base, at, mine, encoded(low * inverse), encoded(high * inverse), DIM, HALF)


def config_for(block_size: int, dim: int) -> tuple[int, int, int]:
    """(tokens per program, half of `dim`, both rounded up to powers of two; warps): about 16 values per thread."""
    lines, half = triton.next_power_of_2(block_size), triton.next_power_of_2(dim // 2)
    return lines, half, min(max(lines * half // 256, 1), 8)


def write_kv_fp8(
    qkv: Tensor,
    kv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    k_norm: Tensor | None,
    eps: float,
    scales: Tensor,
) -> None:
    """The part of `write_kv` that stores keys and values, for a pool of 8-bit floats. Arguments not listed are those of `write_kv`.

    Args:
        kv: as there, in float8_e4m3fn.
        slots: as there; the rows of a block are adjacent, in the order of their offsets. A slot of offset 0 begins a block anew.
        scales: fp32 [blocks, 2, kv_heads], one layer's view: value = code * scale.
    """
    rows, dim, block_size = len(qkv), kv.shape[4], kv.shape[3]
    lines, half, warps = config_for(block_size, dim)
    if rows:
        _fill_blocks[(rows, 2 * kv_heads)](
            qkv,
            kv.view(torch.uint8),
            scales,
            positions,
            slots,
            cos,
            sin,
            cos if k_norm is None else k_norm,
            eps,
            rows,
            qkv.stride(0),
            *kv.stride()[:4],
            *scales.stride(),
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            BLOCK_SIZE=block_size,
            LINES=lines,
            HALF=half,
            NORMS=k_norm is not None,
            num_warps=warps,
        )


def reference_fill(kv: Tensor, scales: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Store fp32 keys (normalized and rotated) and values, [rows, kv_heads, dim], as `write_kv_fp8` does, in plain torch."""
    block_size = kv.shape[3]
    both = reference_shortened(torch.stack((keys, values)).transpose(1, 2))  # [2, kv_heads, rows, dim]
    for run in _runs(slots.tolist(), block_size):
        block, first = divmod(int(slots[run.start]), block_size)
        new, scale = both[:, :, run], reference_scale(both[:, :, run])
        if first:
            old = scales[block].clone()
            scale = scale.maximum(old)
            kept = kv[block, :, :, :first].float() * old[..., None, None]
            kv[block, :, :, :first] = reference_encoded(kept / scale[..., None, None])
        scales[block] = scale
        kv[block, :, :, slots[run] % block_size] = reference_encoded(new / scale[..., None, None])


def _runs(slots: list[int], block_size: int) -> Iterator[slice]:
    """Runs of adjacent rows that share a block; rows without a slot are in none."""
    start = 0
    while start < len(slots):
        stop = start + 1
        while stop < len(slots) and slots[stop] >= 0 and slots[stop] // block_size == slots[start] // block_size:
            stop += 1
        if slots[start] >= 0:
            yield slice(start, stop)
        start = stop


VARIANTS: tuple[Variant, ...] = variants(
    _fill_blocks,
    lambda _, dim: dict(zip(("LINES", "HALF", "warps"), config_for(32, dim), strict=True)),
    {"codes": "u8", "scales": "fp32"},
)
