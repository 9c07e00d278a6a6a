"""Between projection and attention: QK norm if the model has one, rotary embedding, scatter of keys and values into their blocks.

Norm: of each head over its own `dim`, before the rotation (Dehghani et al., arXiv 2302.05442, section 2; per head as in Qwen3).
Rotation: pairs (d, d + dim / 2) by the angle of the row's position (Su et al., arXiv 2104.09864, section 3.4, in the half-split
order of Hugging Face's llama). fp32 throughout, rounded once.

A program takes one row and a group of its heads: all queries, all keys or all values. A row's result depends on that row alone.
A pool of 8-bit floats is filled by a second kernel (kernels/gpu/kv/write_kv_fp8.py), block by block, since scales are per block.

Floor: rows * (heads + 2 kv_heads) * dim * bytes per value * 2 (each read once, written once), plus 4 * dim bytes of angles per row,
over memory bandwidth: Llama-3-8B bf16, 8192 rows: 201 MB + 4 MB, 51 us at 4 TB/s.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.kv.head_tile import load_halves, norm_halves, store_halves, turn_halves, variants
from kernels.gpu.kv.write_kv_fp8 import reference_fill, write_kv_fp8
from kernels.gpu.runtime import Variant


@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _write_kv(
    qkv,
    q,
    kv,
    positions,
    slots,
    cos,
    sin,
    q_norm,
    k_norm,
    eps,
    qkv_stride,
    block_stride,
    part_stride,
    head_stride,
    token_stride,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    NORMS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    one = tl.arange(0, 1)
    Q_TILES: tl.constexpr = (HEADS + GROUP - 1) // GROUP
    KV_TILES: tl.constexpr = (KV_HEADS + GROUP - 1) // GROUP
    if tile < Q_TILES:
        head = tile * GROUP + tl.arange(0, GROUP)
        valid = head < HEADS
        low, high = load_halves(qkv, row * qkv_stride + head * DIM, valid, DIM, HALF)
        if NORMS:
            low, high = norm_halves(low, high, q_norm, eps, DIM, HALF)
        low, high = turn_halves(low, high, cos, sin, tl.load(positions + row + one), one == 0, DIM, HALF)
        store_halves(q, row * (HEADS * DIM) + head * DIM, valid, low, high, DIM, HALF)
    else:
        slot = tl.load(slots + row)
        if slot >= 0:
            part = (tile - Q_TILES) // KV_TILES  # 0: keys, 1: values
            head = (tile - Q_TILES) % KV_TILES * GROUP + tl.arange(0, GROUP)
            valid = head < KV_HEADS
            start = row * qkv_stride + (HEADS + part * KV_HEADS) * DIM
            low, high = load_halves(qkv, start + head * DIM, valid, DIM, HALF)
            if part == 0:
                if NORMS:
                    low, high = norm_halves(low, high, k_norm, eps, DIM, HALF)
                low, high = turn_halves(low, high, cos, sin, tl.load(positions + row + one), one == 0, DIM, HALF)
            base = slot // BLOCK_SIZE * block_stride + slot % BLOCK_SIZE * token_stride + part * part_stride
            store_halves(kv, base + head * head_stride, valid, low, high, DIM, HALF)


def config_for(kv_heads: int, dim: int) -> tuple[int, int, int]:
    """(heads per program, half of `dim` rounded up to a power of two, warps): about 8 values per thread."""
    half = triton.next_power_of_2(dim // 2)
    group = min(triton.next_power_of_2(kv_heads), 8)
    return group, half, min(max(group * half // 128, 1), 4)


def write_kv(
    qkv: Tensor,
    kv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    scales: Tensor | None = None,
) -> Tensor:
    """Normalize and rotate queries and keys, store keys and values, and return the queries.

    Args:
        qkv: [rows, (heads + 2 kv_heads) * dim] in any float type: queries, keys, values; columns contiguous.
        kv: one layer's view of the pool, [blocks, 2, kv_heads, block_size, dim], dim contiguous; written only at `slots`.
        positions: int64 [rows], in their sequences; all must be within `cos`, those of padding rows too.
        slots: int64 [rows], block * block_size + offset; -1 writes nothing. No slot may occur twice.
        cos: fp32 [positions, dim / 2], contiguous.
        sin: the same.
        heads: number of query heads.
        kv_heads: number of key and value heads.
        q_norm: [dim], weight of the queries' norm, or None for no norm; both or neither.
        k_norm: [dim], weight of the keys' norm.
        eps: of the norms.
        scales: fp32 [blocks, 2, kv_heads] of a pool in float8_e4m3fn, also written: a stored value stands for itself times its
            scale. Rows of one block must then be adjacent, in the order of their offsets, as a sequence's rows are. None for
            other pools.

    Returns:
        Queries [rows, heads, dim] in the type of `qkv`.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    dim = kv.shape[-1]
    _check(qkv, kv, positions, slots, cos, sin, heads, kv_heads, q_norm, k_norm)
    _check_scales(kv, scales)
    rows = len(qkv)
    q = torch.empty((rows, heads, dim), dtype=qkv.dtype, device=qkv.device)
    group, half, warps = config_for(kv_heads, dim)
    tiles = triton.cdiv(heads, group)
    if scales is None:
        tiles += 2 * triton.cdiv(kv_heads, group)
    else:
        write_kv_fp8(
            qkv,
            kv,
            positions,
            slots,
            cos,
            sin,
            heads=heads,
            kv_heads=kv_heads,
            k_norm=k_norm,
            eps=eps,
            scales=scales,
        )
    if rows:
        _write_kv[(rows, tiles)](
            qkv,
            q,
            kv if scales is None else q,  # never written by programs of queries
            positions,
            slots,
            cos,
            sin,
            cos if q_norm is None else q_norm,
            cos if k_norm is None else k_norm,
            eps,
            qkv.stride(0),
            *kv.stride()[:4],
            HEADS=heads,
            KV_HEADS=kv_heads,
            DIM=dim,
            BLOCK_SIZE=kv.shape[3],
            GROUP=group,
            HALF=half,
            NORMS=q_norm is not None,
            num_warps=warps,
        )
    return q


def _check(
    qkv: Tensor,
    kv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
) -> None:
    rows, dim = len(qkv), kv.shape[-1]
    if qkv.shape[1] != (heads + 2 * kv_heads) * dim or qkv.stride(1) != 1:
        raise ValueError(f"qkv {tuple(qkv.shape)} must hold {heads} + 2 * {kv_heads} heads of {dim} contiguous columns")
    if kv.dim() != 5 or kv.shape[1:3] != (2, kv_heads) or kv.stride(4) != 1 or dim % 2:
        raise ValueError(f"kv {tuple(kv.shape)} must be [blocks, 2, {kv_heads}, block_size, even dim], dim contiguous")
    for name, index in (("positions", positions), ("slots", slots)):
        if index.shape != (rows,) or index.dtype != torch.int64 or index.stride(0) != 1:
            raise ValueError(f"{name} {index.dtype} {tuple(index.shape)} must be contiguous int64 [{rows}]")
    for name, angle in (("cos", cos), ("sin", sin)):
        if angle.shape[1] != dim // 2 or angle.dtype != torch.float32 or not angle.is_contiguous():
            raise ValueError(
                f"{name} {angle.dtype} {tuple(angle.shape)} must be contiguous fp32 [positions, {dim // 2}]"
            )
    norms = [weight for weight in (q_norm, k_norm) if weight is not None]
    if len(norms) == 1 or any(weight.shape != (dim,) or weight.stride(0) != 1 for weight in norms):
        raise ValueError(f"q_norm and k_norm must both be contiguous [{dim}], or both None")


def _check_scales(kv: Tensor, scales: Tensor | None) -> None:
    if (scales is not None) != (kv.dtype == torch.float8_e4m3fn):
        raise ValueError(f"scales must be given for a pool of float8_e4m3fn and for no other; this one is {kv.dtype}")
    if scales is not None and (scales.shape != kv.shape[:3] or scales.dtype != torch.float32):
        raise ValueError(f"scales {scales.dtype} {tuple(scales.shape)} must be fp32 {tuple(kv.shape[:3])}")


def reference_write_kv(
    qkv: Tensor,
    kv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    heads: int,
    kv_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    scales: Tensor | None = None,
) -> Tensor:
    """What `write_kv` computes, in plain torch; also writes into `kv`."""
    dim, block_size = kv.shape[-1], kv.shape[3]
    widths = [heads * dim, kv_heads * dim, kv_heads * dim]
    q, k, v = (part.float().reshape(len(qkv), part.shape[1] // dim, dim) for part in torch.split(qkv, widths, -1))
    q, k = (
        part if weight is None else torch.nn.functional.rms_norm(part, (dim,), weight.float(), eps)
        for part, weight in ((q, q_norm), (k, k_norm))
    )
    cosine, sine = (angle[positions].repeat(1, 2)[:, None] for angle in (cos, sin))
    q, k = (part * cosine + torch.cat((-part[..., dim // 2 :], part[..., : dim // 2]), -1) * sine for part in (q, k))
    if scales is not None:
        reference_fill(kv, scales, k, v, slots)
        return q.to(qkv.dtype)
    real = slots >= 0
    block, offset = slots[real] // block_size, slots[real] % block_size
    for part, values in enumerate((k, v)):
        kv[block, part, :, offset] = values[real].to(kv.dtype)
    return q.to(qkv.dtype)


VARIANTS: tuple[Variant, ...] = variants(
    _write_kv, lambda kv_heads, dim: dict(zip(("GROUP", "HALF", "warps"), config_for(kv_heads, dim), strict=True)), {}
)
