"""Attention of one new row per sequence over its paged keys, which are split among programs so that one long sequence fills
the chip.

Flash-Decoding (Dao et al. 2023, "Flash-Decoding for long-context inference"): each part of a sequence's keys gives a partial
output and its log-sum-exp, and `merge_states` joins them. The query heads of a KV head are one tile, so a key is read once for
all of them.

How a sequence is split follows from its own length and the model's number of KV heads (`split_length`), never from the batch: a
row's result has the same bits alone and in any batch. Programs for parts that a shorter sequence does not have write an empty
state and end.

Floor: 2 * kv_length * kv_heads * dim * bytes per sequence over bandwidth (Llama-3-8B bf16, 64 x 4096 keys: 1.07 GB, 224 us at
4.8 TB/s); partial states add 8 * heads * dim bytes per part, 3 % at 512 keys per part.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.attention_mass import attention_mass
from kernels.gpu.attention.launch import Config, Pool, chip, exponents, variants
from kernels.gpu.attention.merge_states import merge_states
from kernels.gpu.attention.tile import NOTHING, finish, sweep
from kernels.gpu.runtime import INTERPRETED, Variant, operand
from kernels.gpu.workspace import Part, Workspace, covering_bytes, scratch

SHORTEST = 128  # keys per part: with fewer, the partial states weigh more than 1/8 of the keys
_DOUBLINGS = 3  # of it, up to 1024: longer parts would leave the last programs of a long sequence alone on the chip
PROGRAMS = 64  # most programs that a sequence is split into (parts times KV heads), until parts are the longest


def config_for(group: int, dim: int, bytes_each: int, arch: int) -> Config:
    """Choose by the model's shapes and the chip, never by the batch.

    Args:
        group: query heads per KV head.
        dim: of a head.
        bytes_each: bytes per element of a query.
        arch: what `launch.chip` says: 80 or 90.
    """
    tile = max(triton.next_power_of_2(group), 16)  # a dot takes at least 16 rows
    if bytes_each > 2:
        return Config(tile, 16, warps=4, stages=2)  # for comparing, not for speed
    if dim > 128:
        return Config(tile, 32, warps=4, stages=2)
    return Config(tile, 64 if arch >= 90 else 32, warps=4, stages=3)


def split_length(keys: int, kv_heads: int) -> int:
    """Keys per part for a sequence whose row sees `keys`: the smallest of 128, 256, 512, 1024 that makes at most `PROGRAMS`
    programs, else 1024."""
    limit = _limit(kv_heads)
    return SHORTEST << sum(keys > limit << doubling for doubling in range(_DOUBLINGS))


def most_parts(longest: int, kv_heads: int) -> int:
    """The most parts that a sequence can have whose row sees up to `longest` keys."""
    borders = [border for doubling in range(_DOUBLINGS) if (border := _limit(kv_heads) << doubling) < longest]
    return max(-(-keys // split_length(keys, kv_heads)) for keys in (*borders, longest))


def workspace_bytes(sequences: int, heads: int, kv_heads: int, dim: int, longest: int) -> int:
    """The most that a call takes of a workspace, in bytes, for up to `sequences` rows that each see up to `longest` keys."""
    parts = most_parts(longest, kv_heads)
    return covering_bytes(*_partial(parts, sequences, heads, dim)) if parts > 1 else 0


def _partial(parts: int, sequences: int, heads: int, dim: int) -> tuple[Part, Part]:
    """Outputs of all parts, and their log-sum-exp."""
    return ((parts, sequences, heads, dim), torch.float32), ((parts, sequences, heads), torch.float32)


def _limit(kv_heads: int) -> int:
    """The number of keys up to which parts are the shortest."""
    return SHORTEST * max(PROGRAMS // kv_heads, 1)


@triton.jit(do_not_specialize=["stride_table"], do_not_specialize_on_alignment=["log_sums", "kv_lengths", "tables"])
def _decode_attention(
    q,
    kv,
    scales,
    kv_lengths,
    tables,
    states,
    log_sums,
    window,
    limit,
    inner,
    outer,
    stride_q_row,
    stride_q_head,
    stride_state_part,
    stride_state_row,
    stride_state_head,
    stride_block,
    stride_side,
    stride_head,
    stride_token,
    stride_scale_block,
    stride_scale_side,
    stride_table,
    SHORTEST: tl.constexpr,
    DOUBLINGS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    kv_head, part, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    length = tl.load(kv_lengths + sequence)
    low = 0
    if WINDOWED:
        low = tl.maximum(length - window, 0)
    # `split_length` of the keys that the row sees.
    span = SHORTEST
    for doubling in tl.static_range(DOUBLINGS):
        span += tl.where(length - low > limit << doubling, SHORTEST << doubling, 0)
    begin = low + part * span
    end = tl.minimum(begin + span, length)

    packed = tl.arange(0, BLOCK_M)
    head = kv_head * GROUP + packed
    mine = packed < GROUP
    heads = tl.num_programs(0) * GROUP
    sums = log_sums + (part.to(tl.int64) * tl.num_programs(2) + sequence) * heads + head
    states += part.to(tl.int64) * stride_state_part + sequence * stride_state_row
    dims = tl.arange(0, D_PAD)
    wanted = mine[:, None] & (dims < D)[None, :]
    places = states + (head * stride_state_head)[:, None] + dims[None, :]
    if begin >= end:
        tl.store(sums, tl.full([BLOCK_M], float("-inf"), tl.float32), mine)
        if part == 0:  # with one part only, this is the result
            tl.store(places, tl.zeros([BLOCK_M, D_PAD], states.dtype.element_ty), wanted)
        return

    queries = tl.load(q + sequence * stride_q_row + (head * stride_q_head)[:, None] + dims[None, :], wanted, 0.0)
    queries = operand(queries, INTERPRETED)
    acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)
    top = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    whole = begin + (end - begin) // BLOCK_N * BLOCK_N
    scales_of_head = scales
    if scales is not None:
        scales_of_head = scales + kv_head
    for rest in tl.static_range(2):
        if rest == 0:
            first, last = begin, whole
        else:
            first, last = whole, end
        acc, top, total = sweep(
            acc,
            top,
            total,
            queries,
            head,
            kv + kv_head.to(tl.int64) * stride_head,
            scales_of_head,
            tables + sequence * stride_table,
            first,
            last,
            begin,
            end,
            window,
            inner,
            outer,
            stride_block,
            stride_side,
            stride_token,
            stride_scale_block,
            stride_scale_side,
            BLOCK_N,
            BLOCK_SIZE,
            D,
            D_PAD,
            rest == 1,
            False,
            False,
            SOFT_CAPPED,
            INTERPRETED,
        )
    result, log_sum = finish(acc, top, total)
    tl.store(places, result.to(states.dtype.element_ty), wanted)
    tl.store(sums, log_sum, mine)


def decode_attention(
    q: Tensor,
    kv: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    longest_kv: int,
    window: int = 0,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
    mass: Tensor | None = None,
    log_sums: Tensor | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attend with each sequence's newest row to its keys, which are in the pool already, its own included.

    Args:
        q: [sequences, heads, dim] fp16, bf16 or fp32.
        kv: [blocks, 2, kv_heads, block_size, dim] (keys, values) in the type of `q`, or float8_e4m3fn with `scales`.
        kv_lengths: int32 [sequences]; a sequence without keys (a padding row of a CUDA graph) gets zeros.
        block_tables: int32 [sequences, most blocks], entry i holds positions [i * block_size, (i + 1) * block_size).
        scale: factor on the scores.
        longest_kv: the largest of `kv_lengths`, or more. It bounds the grid and the workspace; no result depends on it. Programs
            past the end of a sequence cost some 10 ns each, so a captured graph wants a bound near its longest sequence.
        window: how many of the newest positions a row sees, its own included; 0 for all.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); 0 for no cap.
        scales: fp32 [blocks, 2, kv_heads]: a stored fp8 value stands for itself times its scale.
        mass: fp32 [sequences, kv_heads, positions]: receives the share of each position in the attention of each row
            (`attention_mass`, a launch of its own).
        log_sums: fp32 [sequences, heads], contiguous: receives the log-sum-exp of each row's scores (natural log).
        out: receives the result in its own type, [sequences, heads, dim], contiguous along dim.
        config: shape of a program, for benchmarks; None for that of `config_for`.
        workspace: of `workspace_bytes` or more; None: partial states get tensors of their own.

    Returns:
        [sequences, heads, dim] in the type of `q`, or `out`.

    Raises:
        ValueError: shapes or types do not fit together, or the workspace is too small.
    """
    pool = Pool.of(q, kv, scales, block_tables)
    sequences, heads, dim = q.shape
    kv_heads = kv.shape[2]
    if len(kv_lengths) != sequences or len(block_tables) != sequences:
        raise ValueError(f"{sequences} rows, {len(kv_lengths)} kv_lengths and {len(block_tables)} block tables")
    out = torch.empty_like(q) if out is None else out
    if not sequences:
        return out
    if mass is not None and log_sums is None:
        log_sums = q.new_empty((sequences, heads), dtype=torch.float32)
    parts = max(most_parts(min(longest_kv, window) if window else longest_kv, kv_heads), 1)
    if parts > 1:
        states, sums = scratch(workspace, q.device, *_partial(parts, *q.shape))
    else:
        states = out[None]
        sums = q.new_empty((1, sequences, heads), dtype=torch.float32) if log_sums is None else log_sums
    inner, outer = exponents(scale, soft_cap)
    config = config or config_for(heads // kv_heads, dim, q.element_size(), chip(q.device))
    _decode_attention[(kv_heads, parts, sequences)](
        q,
        pool.kv,
        pool.scales,
        kv_lengths,
        block_tables,
        states,
        sums,
        window,
        _limit(kv_heads),
        inner,
        outer,
        *q.stride()[:2],
        *states.stride()[:3],
        *pool.strides(block_tables),
        **config.constants(heads // kv_heads, dim, kv.shape[3]),
        SHORTEST=SHORTEST,
        DOUBLINGS=_DOUBLINGS,
        WINDOWED=window > 0,
        SOFT_CAPPED=soft_cap > 0,
        INTERPRETED=INTERPRETED,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if parts > 1:
        merge_states(states, sums, out=out, log_sum=log_sums)
    if mass is not None and log_sums is not None:
        where = (None, kv_lengths, block_tables, mass)
        attention_mass(q, log_sums, kv, *where, scale=scale, window=window, soft_cap=soft_cap, scales=scales)
    return out


def _variants(name: str, group: int, dim: int, dtype: str = "bf16", **options: Any) -> tuple[Variant, ...]:
    flags = {"SHORTEST": SHORTEST, "DOUBLINGS": _DOUBLINGS, "WINDOWED": False, "SOFT_CAPPED": False} | options
    return variants(
        _decode_attention,
        name,
        group,
        dim,
        dtype,
        config_for=config_for,
        pointers={"states": "fp32", "log_sums": "fp32"},
        **flags,
    )


VARIANTS: tuple[Variant, ...] = (
    *_variants("llama-8b bf16", 4, 128),
    *_variants("llama-8b fp16 blocks of 16", 4, 128, "fp16", block_size=16),
    *_variants("llama-8b bf16 window cap", 4, 128, WINDOWED=True, SOFT_CAPPED=True),
    *_variants("llama-8b bf16 fp8", 4, 128, fp8=True),
    *_variants("llama-8b fp32", 4, 128, "fp32"),
    *_variants("smollm2 bf16", 3, 64),
    *_variants("qwen-7b bf16", 7, 128),
    *_variants("dim 80 bf16", 1, 80),
    *_variants("gemma-2 bf16 window cap", 2, 256, WINDOWED=True, SOFT_CAPPED=True),
    *_variants("gemma-2 bf16 fp8", 2, 256, fp8=True),
)
