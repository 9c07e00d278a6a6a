"""Attention of one new row per sequence over its paged keys, which are split among programs so that one long sequence fills
the chip.

Flash-Decoding (Dao et al. 2023, "Flash-Decoding for long-context inference"): each part of a sequence's keys gives a partial
output and its log-sum-exp, which are then merged. The query heads of a KV head are one tile, so a key is read once for all of them.

The launch is persistent: as many programs as the chip holds at a time take, in turn, the parts that `decode_work.plan_decode` has
listed on the device, once for each KV head. So a step costs what its keys cost, however long the longest sequence is, and a CUDA
graph serves all lengths. The program that ends a sequence's last open part for a KV head merges all of them, in the order of the
keys: which program that is changes no bit.

Floor: 2 * kv_length * kv_heads * dim * bytes per sequence over bandwidth (Llama-3-8B bf16, 64 x 4096 keys: 1.07 GB, 224 us at
4.8 TB/s); partial states add 8 * heads * dim bytes per part, 3 % at 256 keys per part, unless the L2 cache keeps them until they
are merged.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.decode_work import FIELDS, DecodeWork, most_parts
from kernels.gpu.attention.launch import Config, Pool, chip, exponents, multiprocessors, variants
from kernels.gpu.attention.merge_states import merged
from kernels.gpu.attention.tile import NOTHING, finish, sweep
from kernels.gpu.runtime import INTERPRETED, Variant, operand
from kernels.gpu.workspace import Part, Workspace, covering_bytes, scratch


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
        return Config(tile, 16, warps=4, stages=2, resident=2)  # for comparing, not for speed
    # As in `paged.config_for`: a loop's loads run ahead only from 5 stages on, for which chips before Hopper lack shared memory.
    stages = 5 if arch >= 90 else 3
    if dim > 128:
        return Config(tile, 32, warps=4, stages=stages, resident=2)
    return Config(tile, 64 if arch >= 90 else 32, warps=4, stages=stages, resident=2)


def _merged_at_once(config: Config, dim: int) -> int:
    """Parts that a program merges at a time: 64 registers a thread."""
    return max(min(2048 * config.warps // int(triton.next_power_of_2(dim)), 64), 1)


def workspace_bytes(sequences: int, heads: int, kv_heads: int, dim: int, longest: int) -> int:
    """The most that a call takes of a workspace, in bytes, for up to `sequences` rows that each see up to `longest` keys."""
    return covering_bytes(*_partial(sequences, sequences * most_parts(longest, kv_heads), heads, dim))


def _partial(sequences: int, room: int, heads: int, dim: int) -> tuple[Part, Part]:
    """Outputs of all parts, and their log-sum-exp; nothing if each sequence has one part, which is written at once."""
    parts = room if room > sequences else 0
    return ((parts, heads, dim), torch.float32), ((parts, heads), torch.float32)


@triton.jit(do_not_specialize_on_alignment=["log_sums", "tables", "items", "count", "arrived"])
def _decode_attention(
    q,
    kv,
    scales,
    tables,
    items,
    count,
    arrived,
    states,
    sums,
    out,
    log_sums,
    inner,
    outer,
    stride_q_row,
    stride_q_head,
    stride_out_row,
    stride_out_head,
    stride_block,
    stride_side,
    stride_head,
    stride_token,
    stride_scale_block,
    stride_scale_side,
    FIELDS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MERGED: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    HEADS: tl.constexpr = KV_HEADS * GROUP
    packed = tl.arange(0, BLOCK_M)
    mine = packed < GROUP
    dims = tl.arange(0, D_PAD)
    wanted = mine[:, None] & (dims < D)[None, :]
    for piece in range(tl.program_id(0), tl.load(count) * KV_HEADS, tl.num_programs(0)):
        item = piece // KV_HEADS
        kv_head = piece % KV_HEADS
        entry = items + item * FIELDS
        sequence = tl.load(entry).to(tl.int64)
        table = tables + tl.load(entry + 1)
        begin, end = tl.load(entry + 2), tl.load(entry + 3)
        first, parts = tl.load(entry + 4).to(tl.int64), tl.load(entry + 5)

        head = kv_head * GROUP + packed
        places = q + sequence * stride_q_row + (head * stride_q_head)[:, None] + dims[None, :]
        queries = operand(tl.load(places, wanted, 0.0), INTERPRETED)
        acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)
        top = tl.full([BLOCK_M], NOTHING, tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        whole = begin + (end - begin) // BLOCK_N * BLOCK_N
        scales_of_head = scales
        if scales is not None:
            scales_of_head = scales + kv_head
        for rest in tl.static_range(2):
            if rest == 0:
                low, high = begin, whole
            else:
                low, high = whole, end
            acc, top, total = sweep(
                acc,
                top,
                total,
                queries,
                head,
                kv + kv_head.to(tl.int64) * stride_head,
                scales_of_head,
                table,
                low,
                high,
                begin,
                end,
                0,
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
        if parts == 1:
            results = out + sequence * stride_out_row + (head * stride_out_head)[:, None] + dims[None, :]
            tl.store(results, result.to(out.dtype.element_ty), wanted)
            if log_sums is not None:
                tl.store(log_sums + sequence * HEADS + head, log_sum, mine)
        else:
            state = item.to(tl.int64) * HEADS + head
            tl.store(states + (state * D)[:, None] + dims[None, :], result, wanted)
            tl.store(sums + state, log_sum, mine)
            tl.debug_barrier()  # one thread says for all of them that the state is there
            done = arrived + sequence * KV_HEADS + kv_head
            if tl.atomic_add(done, 1, sem="acq_rel") == parts - 1:
                tl.store(done, 0)  # for the next layer
                for index in range(GROUP):
                    one = kv_head * GROUP + index
                    state_of_one = first * HEADS + one
                    value, value_sum = merged(
                        states + state_of_one * D, sums + state_of_one, parts, HEADS * D, HEADS, D, D_PAD, MERGED
                    )
                    place = out + sequence * stride_out_row + one * stride_out_head + dims
                    tl.store(place, value.to(out.dtype.element_ty), dims < D)
                    if log_sums is not None:
                        tl.store(log_sums + sequence * HEADS + one, value_sum)


def decode_attention(
    q: Tensor,
    kv: Tensor,
    work: DecodeWork,
    *,
    scale: float,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
    log_sums: Tensor | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attend with each sequence's newest row to its keys, which are in the pool already, its own included.

    Args:
        q: [sequences, heads, dim] fp16, bf16 or fp32.
        kv: [blocks, 2, kv_heads, block_size, dim] (keys, values) in the type of `q`, or float8_e4m3fn with `scales`.
        work: the same sequences (`plan_decode`), with the layer's window; a sequence without keys gets zeros.
        scale: factor on the scores.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); 0 for no cap.
        scales: fp32 [blocks, 2, kv_heads]: a stored fp8 value stands for itself times its scale.
        log_sums: fp32 [sequences, heads], contiguous: receives the log-sum-exp of each row's scores (natural log).
        out: receives the result in its own type, [sequences, heads, dim], contiguous along dim.
        config: shape of a program, for benchmarks; None for that of `config_for`.
        workspace: of `workspace_bytes` or more; None: partial states get tensors of their own.

    Returns:
        [sequences, heads, dim] in the type of `q`, or `out`.

    Raises:
        ValueError: shapes or types do not fit together, or the workspace is too small.
    """
    pool = Pool.of(q, kv, scales, work.tables)
    sequences, heads, dim = q.shape
    kv_heads = kv.shape[2]
    if (work.sequences, work.kv_heads) != (sequences, kv_heads):
        raise ValueError(f"{sequences} rows over {kv_heads} KV heads, work for {work.sequences} over {work.kv_heads}")
    out = torch.empty_like(q) if out is None else out
    if not sequences:
        return out
    room = len(work.items)
    states, sums = scratch(workspace, q.device, *_partial(sequences, room, heads, dim))
    config = config or config_for(heads // kv_heads, dim, q.element_size(), chip(q.device))
    programs = min(multiprocessors(q.device) * config.resident, room * kv_heads)
    _decode_attention[(programs,)](
        q,
        pool.kv,
        pool.scales,
        work.tables,
        work.items,
        work.count,
        work.arrived,
        states,
        sums,
        out,
        log_sums,
        *exponents(scale, soft_cap),
        *q.stride()[:2],
        *out.stride()[:2],
        *pool.strides(work.tables)[:-1],
        **config.constants(heads // kv_heads, dim, kv.shape[3]),
        FIELDS=FIELDS,
        KV_HEADS=kv_heads,
        MERGED=_merged_at_once(config, dim),
        SOFT_CAPPED=soft_cap > 0,
        INTERPRETED=INTERPRETED,
        num_warps=config.warps,
        num_stages=config.stages,
        maxnreg=config.registers,
    )
    return out


def _variants(
    name: str, group: int, kv_heads: int, dim: int, dtype: str = "bf16", *, partial: bool = False, **options: Any
) -> tuple[Variant, ...]:
    """`partial`: for a merge with attention over other keys, as of a shared prefix."""
    results = {"out": "fp32", "log_sums": "fp32"} if partial else {"out": dtype}
    flags = {"FIELDS": FIELDS, "KV_HEADS": kv_heads, "SOFT_CAPPED": False} | options
    return variants(
        _decode_attention,
        name,
        group,
        dim,
        dtype,
        config_for=config_for,
        pointers={"states": "fp32", "sums": "fp32"} | results | dict.fromkeys(("items", "count", "arrived"), "i32"),
        absent=() if partial else ("log_sums",),
        derived=lambda config: {"MERGED": _merged_at_once(config, dim)},
        **flags,
    )


VARIANTS: tuple[Variant, ...] = (
    *_variants("llama-8b bf16", 4, 8, 128),
    *_variants("llama-8b fp16 blocks of 16", 4, 8, 128, "fp16", block_size=16),
    *_variants("llama-8b bf16 cap", 4, 8, 128, SOFT_CAPPED=True),
    *_variants("llama-8b bf16 fp8", 4, 8, 128, fp8=True),
    *_variants("llama-8b bf16 beside a prefix", 4, 8, 128, partial=True),
    *_variants("llama-8b fp32", 4, 8, 128, "fp32"),
    *_variants("smollm2 bf16", 3, 3, 64),
    *_variants("qwen-7b bf16", 7, 4, 128),
    *_variants("dim 80 bf16", 1, 32, 80),
    *_variants("gemma-2 bf16 cap", 2, 4, 256, SOFT_CAPPED=True),
    *_variants("gemma-2 bf16 fp8", 2, 4, 256, fp8=True),
)
