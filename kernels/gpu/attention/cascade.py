"""Cascade attention: decode attention for groups of sequences that share a prefix, whose keys are read once per group rather than
once per sequence.

Softmax attention over a sequence's keys is a merge of attention over any partition of them (Juravsky et al. 2024, "Hydragen",
section 3.1; Ye et al. 2024, "Cascade inference"). The partition here: the shared prefix, for which the group's rows are one tile
of queries without causal order (`paged_attention`, every row sees every key), cut into parts that fill the chip; and the rest of
each sequence (`decode_attention`). `merge_states` joins them. Partial results are fp32.

Which sequences form a group, and whether that pays, is decided on the host once per step
(`kernels.gpu.attention.cascade_groups`). A result equals `decode_attention`'s except for the order of its sums, which depends on
the sequence's group: a server that promises results independent of the batch does not group. There is no sliding window: rows
would see different parts of the prefix.

Bytes: each prefix once per `cascade_groups.TILE` packed rows (32 sequences of Llama-3-8B), each rest once, and per part of a
prefix 4 * rows * heads * (dim + 1) written and read. Floor for 64 sequences of 8192 shared and 512 own tokens, Llama-3-8B bf16, one
layer: 34 MB twice + 134 MB + partials, 45 us at 4.8 TB/s, where 64 * 8704 keys take 2.28 GB, 475 us (less where the L2 cache
helps).
"""

import torch
from torch import Tensor

from kernels.gpu.attention.cascade_groups import CascadeBatch
from kernels.gpu.attention.decode import decode_attention
from kernels.gpu.attention.decode_work import DecodeWork
from kernels.gpu.attention.merge_states import merge_states
from kernels.gpu.attention.paged import paged_attention
from kernels.gpu.attention.reference import reference_attention
from kernels.gpu.workspace import Workspace


def cascade_attention(
    q: Tensor,
    kv: Tensor,
    batch: CascadeBatch,
    work: DecodeWork,
    *,
    scale: float,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attend with one row per sequence to all its keys.

    Args:
        q: [sequences, heads, dim] fp16, bf16 or fp32.
        kv: [blocks, 2, kv_heads, block_size, dim], one layer's keys and values.
        batch: the same sequences, laid out by `CascadeBatch.build`.
        work: `plan_decode` of the rests.
        scale: factor on the scores.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); 0 for no cap.
        scales: fp32 [blocks, 2, kv_heads] of an fp8 pool.
        out: receives the result.
        workspace: for `decode_attention`; the partial results of prefixes have tensors of their own.

    Returns:
        [sequences, heads, dim] in the type of `q`, or `out`.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    sequences, heads, dim = q.shape
    if len(batch.lengths) != sequences:
        raise ValueError(f"{sequences} queries for a batch of {len(batch.lengths)} sequences")
    parts = q.new_empty((batch.splits + 1, sequences, heads, dim), dtype=torch.float32)
    log_sums = q.new_empty(parts.shape[:3], dtype=torch.float32)
    paged_attention(
        q.repeat(batch.splits, 1, 1),
        kv,
        batch.prefix_starts,
        batch.prefix_lengths,
        batch.prefix_tables,
        scale=scale,
        longest=batch.longest,
        soft_cap=soft_cap,
        scales=scales,
        causal=False,
        log_sums=log_sums[:-1],
        out=parts[:-1].flatten(0, 1),
    )
    decode_attention(
        q,
        kv,
        work,
        scale=scale,
        soft_cap=soft_cap,
        scales=scales,
        log_sums=log_sums[-1],
        out=parts[-1],
        workspace=workspace,
    )
    return merge_states(parts, log_sums, out=torch.empty_like(q) if out is None else out)[0]


def reference_cascade_attention(
    q: Tensor,
    kv: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
) -> Tensor:
    """Attention of each sequence to all its keys, by definition and without groups; `kv_lengths` and `block_tables` are whole."""
    starts = torch.arange(len(q) + 1)
    return reference_attention(
        q, kv, starts, kv_lengths, block_tables, scale=scale, soft_cap=soft_cap, scales=scales
    ).out
