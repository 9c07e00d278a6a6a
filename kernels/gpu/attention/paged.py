"""Attention over a block-managed KV cache, for a ragged batch in one launch: prompt chunks of any length and single tokens mixed.

Every query row attends causally to its sequence's keys, wherever their blocks are. FlashAttention-2's tiling (Dao 2023, arXiv
2307.08691, sections 3.1-3.2): a program holds one tile of rows and walks over the keys; only tiles on the diagonal and on the
left edge of a sliding window are masked. The query heads that share a KV head are packed into one tile (row-major: row, head), so
keys are read once for the group (Ainslie et al. 2023, arXiv 2305.13245).

    tile of rows -> first key seen | left edge, masked | every row sees every key | diagonal, masked |

A launch has only as many tiles as the batch may need; each finds its sequence by counting tiles, so short sequences beside a long
one cost nothing. Tiles with the most keys start first. The tile shape depends on the model's shapes alone, and tiles of keys
begin at multiples of their size: a row's result here depends neither on the batch nor, unless its chunk is split, on how its prompt
was cut. (A model's may: of a chunk of one token, the row goes through `decode.py`, which adds in another order.)

Chunks with few rows on many keys are split over their keys (`chunk_work`): of each tile's programs the one that ends last merges
the parts, in the order of the keys.

Floor: 4 * rows * (keys seen on average) * heads * dim operations over the tensor cores' rate (1 x 16k causal, 32 heads of 128:
2.2 TFLOP, 2.8 ms at 790 TFLOP/s), or for few rows the keys and values once: 2 * kv_length * kv_heads * dim * bytes over bandwidth.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.attention_mass import attention_mass
from kernels.gpu.attention.boxes import FASTER, by_boxes, describe
from kernels.gpu.attention.chunk_tiles import find_piece, hand_in, keys_of_piece, visible_keys
from kernels.gpu.attention.chunk_work import FIELDS, ChunkWork, most_states
from kernels.gpu.attention.launch import MOST_REGISTERS, Config, Pool, capability, chip, exponents, variants
from kernels.gpu.attention.tile import NOTHING, finish, sweep
from kernels.gpu.runtime import INTERPRETED, Variant, operand
from kernels.gpu.workspace import Part, Workspace, covering_bytes, scratch


def config_for(group: int, dim: int, bytes_each: int, arch: int, *, fp8: bool = False) -> Config:
    """Choose by the model's shapes and the chip, never by the batch.

    From Hopper on, a dot reads its right-hand side from shared memory; before, both sides pass through registers, and tiles must
    be smaller.

    Args:
        group: query heads per KV head.
        dim: of a head.
        bytes_each: bytes per element of a query.
        arch: what `launch.chip` says: 80 or 90.
        fp8: whether the pool holds 8-bit floats, which take registers to convert.

    Raises:
        ValueError: the group does not fit a tile.
    """
    hopper = arch >= 90
    # A loop's loads run ahead only from 5 stages on: the block table's load takes one level of the pipeline and what it points to
    # another, so that with 3 each iteration waits for its own keys. Chips before Hopper have less shared memory and keep 3.
    # Converting 8-bit floats takes so many registers that only half as many keys at a time leave room for 5.
    stages = 5 if hopper else 3
    if bytes_each > 2:
        config = Config(32, 16, warps=8 if hopper else 4, stages=2)  # for comparing, not for speed
    elif dim <= 64:
        config = Config(128, 32 if fp8 else 64, warps=4, stages=stages) if hopper else Config(64, 32, warps=4, stages=3)
    elif dim <= 128:
        config = Config(128, 64 if hopper and not fp8 else 32, warps=8, stages=stages)
    elif hopper:
        config = Config(64, 16, warps=8, stages=stages) if fp8 else Config(128, 32, warps=8, stages=stages)
    else:
        config = Config(64, 32, warps=8, stages=2)
    if group > config.tile:
        raise ValueError(f"{group} query heads per KV head; at most {config.tile} are possible")
    return config


@triton.jit(
    do_not_specialize=["sequences", "stride_table"],
    do_not_specialize_on_alignment=["row_starts", "kv_lengths", "tables", "items", "arrived"],
)
def _paged_attention(
    q,
    kv,
    scales,
    row_starts,
    kv_lengths,
    tables,
    out,
    log_sums,
    items,
    arrived,
    states,
    sums,
    boxes,
    sequences,
    window,
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
    stride_table,
    FIELDS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    SOFT_CAPPED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    ROWS: tl.constexpr = BLOCK_M // GROUP
    sequence, first, count = find_piece(items, row_starts, sequences, ROWS, FIELDS)
    if sequence >= sequences:
        return
    kv_head = tl.program_id(1)
    length = tl.load(kv_lengths + sequence)

    packed = tl.arange(0, BLOCK_M)
    row = first + packed // GROUP
    mine = (packed < ROWS * GROUP) & (row < count)
    head = kv_head * GROUP + packed % GROUP
    step_row = tl.load(row_starts + sequence) + row
    dims = tl.arange(0, D_PAD)
    wanted = mine[:, None] & (dims < D)[None, :]
    places = step_row.to(tl.int64) * stride_q_row + head * stride_q_head
    queries = operand(tl.load(q + places[:, None] + dims[None, :], mask=wanted, other=0.0), INTERPRETED)

    positions = length - count + row
    low, high, left, right = visible_keys(length, length - count + first, window, ROWS, BLOCK_N, CAUSAL, WINDOWED)
    low, high, left, right = keys_of_piece(items, low, high, left, right, FIELDS)

    acc = tl.zeros([BLOCK_M, D_PAD], tl.float32)
    top = tl.full([BLOCK_M], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    keys_of_head = kv + kv_head.to(tl.int64) * stride_head
    scales_of_head = scales
    if scales is not None:
        scales_of_head = scales + kv_head
    table = tables + sequence.to(tl.int64) * stride_table
    for edge in tl.static_range(3):
        if edge != 0 or WINDOWED:
            if edge == 0:
                begin, end = low // BLOCK_N * BLOCK_N, tl.minimum(left, high)
            elif edge == 1:
                begin, end = left, right
            else:
                begin, end = right, high
            acc, top, total = sweep(
                acc, top, total, queries, positions, keys_of_head, scales_of_head, table, begin, end, low, high, window,
                inner, outer, stride_block, stride_side, stride_token, stride_scale_block, stride_scale_side,
                BLOCK_N, BLOCK_SIZE, D, D_PAD, edge != 1, CAUSAL, WINDOWED, SOFT_CAPPED, INTERPRETED,
                boxes, kv_head * (stride_head // D),
            )  # fmt: skip
    result, log_sum = finish(acc, top, total)
    out += step_row.to(tl.int64) * stride_out_row + head * stride_out_head
    if log_sums is not None:
        log_sums += step_row.to(tl.int64) * (tl.num_programs(1) * GROUP) + head
    hand_in(
        items, arrived, states, sums, out, log_sums, result, log_sum, mine, packed // GROUP, head,
        tl.minimum(ROWS, count - first), tl.num_programs(1) * GROUP, FIELDS, D, D_PAD, COLUMNS,
    )  # fmt: skip


def tile_height(group: int, dim: int, bytes_each: int, device: torch.device, *, fp8: bool = False) -> int:
    """Rows of a tile, for `chunk_work.plan_chunks`; arguments as of `config_for`."""
    return config_for(group, dim, bytes_each, chip(device), fp8=fp8).tile // group


def workspace_bytes(tokens: int, heads: int, kv_heads: int, dim: int, longest: int) -> int:
    """The most that a call takes of a workspace, in bytes, for a step of `tokens` tokens with up to `longest` keys each."""
    return covering_bytes(*_partial(most_states(tokens, heads, kv_heads, longest), heads, dim))


def _partial(states: int, heads: int, dim: int) -> tuple[Part, Part]:
    """Outputs of parts, and their log-sum-exp."""
    return ((states, heads, dim), torch.float32), ((states, heads), torch.float32)


def paged_attention(
    q: Tensor,
    kv: Tensor,
    row_starts: Tensor,
    kv_lengths: Tensor,
    block_tables: Tensor,
    *,
    scale: float,
    longest: int,
    window: int = 0,
    soft_cap: float = 0.0,
    scales: Tensor | None = None,
    mass: Tensor | None = None,
    causal: bool = True,
    log_sums: Tensor | None = None,
    out: Tensor | None = None,
    config: Config | None = None,
    work: ChunkWork | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Attend with every row to its sequence's keys, which are in the pool already, the rows' own included.

    Args:
        q: [rows, heads, dim] fp16, bf16 or fp32; sequence after sequence. Rows past the last sequence are ignored.
        kv: [blocks, 2, kv_heads, block_size, dim] (keys, values) in the type of `q`, or float8_e4m3fn with `scales`.
        row_starts: int32 [sequences + 1], first row of each; a sequence may have none.
        kv_lengths: int32 [sequences], keys of each: row i of n is at position kv_length - n + i.
        block_tables: int32 [sequences, most blocks], entry i holds positions [i * block_size, (i + 1) * block_size).
        scale: factor on the scores.
        longest: the most rows of any sequence here, or more; it bounds the grid.
        window: how many of the newest positions a row sees, its own included; 0 for all.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap); 0 for no cap.
        scales: fp32 [blocks, 2, kv_heads]: a stored fp8 value stands for itself times its scale.
        mass: fp32 [sequences, kv_heads, positions]: receives the share of each position in the attention of each sequence's last
            row (`attention_mass`, a launch of its own).
        causal: if False, every row sees all keys of its sequence (a prefix that lies wholly before the rows); needs `window` 0.
        log_sums: fp32 [rows, heads], contiguous: receives the log-sum-exp of each row's scores (natural log), -inf if the row
            sees no key.
        out: receives the result, [rows, heads, dim], contiguous along dim.
        config: shape of a program, for benchmarks; None for that of `config_for`.
        work: the same sequences, of which some are split (`plan_chunks`); None: none is. Needs causal order and `window` 0.
        workspace: of `workspace_bytes` or more; None: partial states get tensors of their own.

    Returns:
        [rows, heads, dim] in the type of `q`, or `out`.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    pool = Pool.of(q, kv, scales, block_tables)
    rows, heads, dim = q.shape
    kv_heads, sequences = pool.kv.shape[2], len(kv_lengths)
    if work is not None and (window or not causal):
        raise ValueError(f"chunks are split in causal order and without a window, not with one of {window}")
    if window and not causal:
        raise ValueError(f"a window of {window} needs positions, but rows without causal order have none")
    if len(row_starts) != sequences + 1 or len(block_tables) != sequences:
        raise ValueError(
            f"{sequences} kv_lengths, {len(row_starts)} row_starts (one more) and {len(block_tables)} block tables"
        )
    out = torch.empty_like(q) if out is None else out
    if mass is not None and log_sums is None:
        log_sums = q.new_empty((rows, heads), dtype=torch.float32)
    if config is None:
        config = config_for(heads // kv_heads, dim, q.element_size(), chip(q.device), fp8=pool.scales is not None)
        config = by_boxes(config, pool.kv) if FASTER and capability(q.device) in FASTER else config
    height = config.tile // (heads // kv_heads)
    tiles = min(rows // height + sequences, -(-longest // height) * sequences)
    states = sums = None
    if work is not None:
        tiles = len(work.items)
        states, sums = scratch(workspace, q.device, *_partial(work.states, heads, dim))
    inner, outer = exponents(scale, soft_cap)
    if tiles:
        _paged_attention[(tiles, kv_heads)](
            q,
            pool.kv,
            pool.scales,
            row_starts,
            kv_lengths,
            block_tables,
            out,
            log_sums,
            None if work is None else work.items,
            None if work is None else work.arrived,
            states,
            sums,
            describe(pool.kv, config),
            sequences,
            window,
            inner,
            outer,
            *q.stride()[:2],
            *out.stride()[:2],
            *pool.strides(block_tables),
            **config.constants(heads // kv_heads, dim, kv.shape[3]),
            FIELDS=FIELDS,
            COLUMNS=min(triton.next_power_of_2(dim), 32),
            CAUSAL=causal,
            WINDOWED=window > 0,
            SOFT_CAPPED=soft_cap > 0,
            INTERPRETED=INTERPRETED,
            num_warps=config.warps,
            num_stages=config.stages,
            maxnreg=MOST_REGISTERS if config.boxes or work is not None else None,
        )
    if mass is not None and log_sums is not None:
        where = (row_starts, kv_lengths, block_tables, mass)
        attention_mass(q, log_sums, kv, *where, scale=scale, window=window, soft_cap=soft_cap, scales=scales)
    return out


def _variants(
    name: str, group: int, dim: int, dtype: str = "bf16", *, split: bool = False, **options: Any
) -> tuple[Variant, ...]:
    columns = min(triton.next_power_of_2(dim), 32)
    flags = {"FIELDS": FIELDS, "COLUMNS": columns, "CAUSAL": True, "WINDOWED": False, "SOFT_CAPPED": False} | options
    return variants(
        _paged_attention,
        name,
        group,
        dim,
        dtype,
        config_for=partial(config_for, fp8=options.get("fp8", False)),
        pointers={"out": dtype, "items": "i32", "arrived": "i32", "states": "fp32", "sums": "fp32"},
        registers=MOST_REGISTERS if split else None,
        absent=("log_sums", "boxes") if split else ("log_sums", "boxes", "items", "arrived", "states", "sums"),
        **flags,
    )


def _by_boxes(pointers: Variant) -> Variant:
    """The same with keys and values from boxes, as `boxes.by_boxes` has it for a GPU."""
    fixed = {name: value for name, value in pointers.constants.items() if name != "boxes"}
    fixed["BLOCK_N"] = min(fixed["BLOCK_N"], fixed["BLOCK_SIZE"])
    box = f"tensordesc<{pointers.signature['kv'].removeprefix('*')}[{fixed['BLOCK_N']},{fixed['D_PAD']}]>"
    signature = dict(pointers.signature) | {"boxes": box}
    name = f"{pointers.name} boxes"
    return replace(pointers, name=name, signature=signature, constants=fixed, registers=MOST_REGISTERS)


_POINTERS: tuple[Variant, ...] = (
    *_variants("llama-8b bf16", 4, 128),
    *_variants("llama-8b fp16 blocks of 16", 4, 128, "fp16", block_size=16),
    *_variants("llama-8b bf16 window", 4, 128, WINDOWED=True),
    *_variants("llama-8b bf16 window cap", 4, 128, WINDOWED=True, SOFT_CAPPED=True),
    *_variants("llama-8b bf16 prefix", 4, 128, CAUSAL=False),
    *_variants("llama-8b bf16 split", 4, 128, split=True),
    *_variants("llama-8b bf16 fp8 split", 4, 128, split=True, fp8=True),
    *_variants("smollm2 bf16 split", 3, 64, split=True),
    *_variants("gemma-2 bf16 split cap", 2, 256, split=True, SOFT_CAPPED=True),
    *_variants("llama-8b bf16 fp8", 4, 128, fp8=True),
    *_variants("llama-8b fp32", 4, 128, "fp32"),
    *_variants("smollm2 bf16", 3, 64),
    *_variants("smollm2 bf16 window cap", 3, 64, WINDOWED=True, SOFT_CAPPED=True),
    *_variants("qwen-7b bf16", 7, 128),
    *_variants("dim 80 bf16", 1, 80),
    *_variants("dim 96 bf16", 1, 96),
    *_variants("gemma-2 bf16 window cap", 2, 256, WINDOWED=True, SOFT_CAPPED=True),
    *_variants("gemma-2 bf16 fp8", 2, 256, fp8=True),
    *_variants("gemma-2 bf16 fp8 window cap", 2, 256, fp8=True, WINDOWED=True, SOFT_CAPPED=True),
)
_BOXED = (
    *("llama-8b bf16", "llama-8b fp16 blocks of 16", "llama-8b bf16 window cap", "llama-8b bf16 split"),
    *("smollm2 bf16", "smollm2 bf16 split", "qwen-7b bf16", "dim 80 bf16"),
)
VARIANTS = (*_POINTERS, *(_by_boxes(each) for each in _POINTERS if each.name in _BOXED and each.archs == (90,)))
