"""Attention mass: the share of its attention that a sequence's newest row gives to each position of its keys.

mass[n] = mean over the query heads of a KV head of exp(score_n - log_sum): by this, eviction by attention ("heavy hitters", Zhang
et al. 2023, arXiv 2306.14048, section 4) and its relatives rank positions. It is a separate pass after attention, whose
log-sum-exp it takes: attention itself costs no more, and the pass reads the keys once more but no values. Nothing in the engine
calls it yet; compression of the KV cache will.

A program takes one part of the positions for all query heads of a KV head. Floor: kv_length * kv_heads * (dim * bytes read + 4
written) per sequence over bandwidth (Llama-3-8B bf16, 64 x 4096 keys: 0.55 GB, 114 us at 4.8 TB/s), half of decode attention's.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.launch import LOG2E, Config, Pool, exponents, variants
from kernels.gpu.attention.tile import as_operand, block_ids, scores
from kernels.gpu.runtime import INTERPRETED, Variant, operand

PART = 256  # positions per program


@triton.jit(
    do_not_specialize=["positions", "stride_table", "stride_mass_sequence", "stride_mass_head"],
    do_not_specialize_on_alignment=["row_starts", "kv_lengths", "tables", "log_sums", "mass"],
)
def _attention_mass(
    q,
    log_sums,
    kv,
    scales,
    row_starts,
    kv_lengths,
    tables,
    mass,
    positions,
    window,
    inner,
    outer,
    log2e,
    stride_q_row,
    stride_q_head,
    stride_block,
    stride_side,
    stride_head,
    stride_token,
    stride_scale_block,
    stride_scale_side,
    stride_table,
    stride_mass_sequence,
    stride_mass_head,
    PART: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    part, kv_head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(kv_lengths + sequence)
    if row_starts is None:
        row = sequence
        high = length
    else:
        row = tl.load(row_starts + sequence + 1).to(tl.int64) - 1
        # A sequence without rows has no newest one, and no mass.
        high = tl.where(row >= tl.load(row_starts + sequence), length, 0)
    low = 0
    if window > 0:
        low = tl.maximum(length - window, 0)

    packed = tl.arange(0, BLOCK_M)
    mine = packed < GROUP
    head = kv_head * GROUP + packed
    dims = tl.arange(0, D_PAD)
    asked = mine & (packed * 0 < high)  # not `high > 0`: the interpreter takes no mask made with a scalar condition
    queries = tl.load(
        q + row * stride_q_row + (head * stride_q_head)[:, None] + dims[None, :],
        asked[:, None] & (dims < D)[None, :],
        0.0,
    )
    queries = operand(queries, INTERPRETED)
    log_sum = tl.load(log_sums + row * (tl.num_programs(1) * GROUP) + head, asked, float("inf")) * log2e
    keys_of_head = kv + kv_head.to(tl.int64) * stride_head
    out = mass + sequence * stride_mass_sequence + kv_head * stride_mass_head
    SCALED: tl.constexpr = scales is not None
    begin = part * PART
    for start in range(begin, tl.minimum(begin + PART, positions), BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        seen = (keys >= low) & (keys < high)
        block = block_ids(tables + sequence * stride_table, keys, seen, BLOCK_SIZE)
        offsets = block * stride_block + (keys % BLOCK_SIZE) * stride_token
        inside = seen[None, :] & (dims < D)[:, None]
        k = tl.load(keys_of_head + offsets[None, :] + dims[:, None], mask=inside, other=0.0)
        k_scale = 1.0
        if SCALED:
            k_scale = tl.load(scales + kv_head + block * stride_scale_block, mask=seen, other=0.0)
        s = scores(queries, as_operand(k, q.dtype.element_ty, INTERPRETED), k_scale, inner, outer, SCALED, SOFT_CAPPED)
        share = tl.where(seen[None, :] & mine[:, None], tl.exp2(s - log_sum[:, None]), 0.0)
        tl.store(out + keys, tl.sum(share, 0) / GROUP, keys < positions)


def attention_mass(
    q: Tensor,
    log_sums: Tensor,
    kv: Tensor,
    row_starts: Tensor | None,
    kv_lengths: Tensor,
    block_tables: Tensor,
    mass: Tensor,
    *,
    scale: float,
    window: int = 0,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
) -> Tensor:
    """Write each sequence's mass into `mass` and return it.

    Args:
        q: [rows, heads, dim], as attention was computed for; the last row of each sequence counts.
        log_sums: fp32 [rows, heads], contiguous, from that attention.
        kv, kv_lengths, block_tables, scale, window, soft_cap, scales: as for that attention (`paged_attention`).
        row_starts: the same; None for one row per sequence (`decode_attention`).
        mass: fp32 [sequences, kv_heads, positions], positions contiguous: receives the shares, which add up to 1 over a sequence's
            keys if `positions` is at least its length; 0 for keys that the row does not see, and for a sequence without rows.

    Returns:
        `mass`.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    pool = Pool.of(q, kv, scales, block_tables)
    heads, dim = q.shape[1:]
    kv_heads, sequences = kv.shape[2], len(kv_lengths)
    if mass.shape[:2] != (sequences, kv_heads) or mass.dtype != torch.float32 or mass.stride(-1) != 1:
        raise ValueError(f"mass {tuple(mass.shape)} {mass.dtype} must be fp32 [{sequences}, {kv_heads}, positions]")
    inner, outer = exponents(scale, soft_cap)
    positions = mass.shape[2]
    config = config_for(heads // kv_heads, dim, q.element_size())
    if sequences and positions:
        _attention_mass[(triton.cdiv(positions, PART), kv_heads, sequences)](
            q,
            log_sums,
            pool.kv,
            pool.scales,
            row_starts,
            kv_lengths,
            block_tables,
            mass,
            positions,
            window,
            inner,
            outer,
            LOG2E,
            *q.stride()[:2],
            *pool.strides(block_tables),
            *mass.stride()[:2],
            **config.constants(heads // kv_heads, dim, kv.shape[3]),
            PART=PART,
            SOFT_CAPPED=soft_cap > 0,
            INTERPRETED=INTERPRETED,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return mass


def config_for(group: int, dim: int, bytes_each: int, _chip: int = 0) -> Config:
    """Choose by the model's shapes; the same for all chips."""
    return Config(max(triton.next_power_of_2(group), 16), 64 if dim <= 128 and bytes_each <= 2 else 32, 4, 3)


def _variants(name: str, group: int, dim: int, *, ragged: bool = True, **options: Any) -> tuple[Variant, ...]:
    flags = {"PART": PART, "SOFT_CAPPED": False} | options
    return variants(
        _attention_mass,
        name,
        group,
        dim,
        config_for=config_for,
        pointers={"log_sums": "fp32", "mass": "fp32"},
        absent=() if ragged else ("row_starts",),
        **flags,
    )


VARIANTS: tuple[Variant, ...] = (
    *_variants("llama-8b bf16", 4, 128),
    *_variants("llama-8b bf16 decode", 4, 128, ragged=False),
    *_variants("llama-8b bf16 fp8", 4, 128, fp8=True),
    *_variants("smollm2 bf16", 3, 64),
    *_variants("gemma-2 bf16 cap", 2, 256, SOFT_CAPPED=True),
)
