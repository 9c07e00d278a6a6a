"""What the C++ kernels compute, in plain torch: the same roundings, with no regard to speed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.cpu.native import NativeChunk
from kernels.cpu.packing import GROUP, PackedMatrix, unpack


def quantized(rows: Tensor) -> Tensor:
    """fp32 [rows, columns] rounded to int8 by groups of 32 (scale = largest magnitude / 127), as fp32 values."""
    groups = rows.view(len(rows), -1, GROUP)
    most = groups.abs().amax(dim=-1, keepdim=True)
    scale = most / 127
    inverse = torch.where(most > 0, 127 / most, 0.0)
    return ((groups * inverse).round() * scale).view_as(rows)


def linear(rows: Tensor, weight: PackedMatrix) -> Tensor:
    """`quantized(rows) @ weight.T` as fp32 [rows, outputs], summed in fp64."""
    return (quantized(rows).double() @ unpack(weight).double().T).float()


def mask(logits: Tensor, rows: Sequence[int], allowed: Tensor) -> Tensor:
    """`logits` fp32 [*, vocabulary] with -inf added, in row `rows[i]`, to tokens without a bit in `allowed[i]`, int32 [words]."""
    out = logits.clone()
    for row, words in zip(rows, allowed, strict=True):
        bits = (words[:, None] >> torch.arange(32)) & 1
        out[row] += torch.where(bits.flatten()[: logits.shape[1]] == 1, 0.0, float("-inf"))
    return out


def attention(
    qkv: Tensor,
    chunks: Sequence[NativeChunk],
    storage: Tensor,
    *,
    heads: int,
    layer: int,
    window: int,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """Attention of rows already rotated; the pool is written first, then read back through the block tables.

    Args:
        qkv: fp32 [rows, (heads + 2 * kv_heads) * dim].
        chunks: the sequences and positions of the rows.
        storage: int32 [blocks, layers, kv_heads, 2, block_size * dim / 2].
        heads: number of query heads.
        layer: of the pool.
        window: how many of the newest keys a row sees; 0 for all.
        scale: factor on scores; None: dim ** -0.5.
        soft_cap: scores s become cap * tanh(s / cap).

    Returns:
        fp32 [rows, heads * dim]. Queries are not rounded: the kernels round them, and the weights of attention, to bf16.
    """
    kv_heads = storage.shape[2]
    dim = qkv.shape[1] // (heads + 2 * kv_heads)
    rows = qkv.view(len(qkv), -1, dim)
    queries, keys, values = torch.split(rows, [heads, kv_heads, kv_heads], dim=1)
    out, first = torch.empty(len(qkv), heads, dim), 0
    for chunk in chunks:
        for row in range(chunk.rows):
            place = _views(storage, chunk, layer, chunk.start + row, dim)
            _write(place, keys[first + row], values[first + row])
        held = [read(storage, chunk, layer, position, dim) for position in range(chunk.start + chunk.rows)]
        for row in range(chunk.rows):
            end = chunk.start + row + 1
            seen = held[max(0, end - window) if window else 0 : end]
            k = torch.stack([key for key, _ in seen], dim=1).repeat_interleave(heads // kv_heads, dim=0)
            v = torch.stack([value for _, value in seen], dim=1).repeat_interleave(heads // kv_heads, dim=0)
            scores = k @ queries[first + row, :, :, None] * (scale or dim**-0.5)
            weights = (scores if soft_cap is None else soft_cap * (scores / soft_cap).tanh()).softmax(dim=1)
            out[first + row] = (weights * v).sum(dim=1)
        first += chunk.rows
    return out.flatten(1)


def _write(place: tuple[Tensor, Tensor, int], key: Tensor, value: Tensor) -> None:
    keys, values, token = place
    keys[:, :, token] = key.bfloat16().view(len(key), -1, 2)
    values[:, token // 2, :, token % 2] = value.bfloat16()


def read(storage: Tensor, chunk: NativeChunk, layer: int, position: int, dim: int) -> tuple[Tensor, Tensor]:
    """One token's key and value, fp32 [kv_heads, dim] each."""
    keys, values, token = _views(storage, chunk, layer, position, dim)
    return keys[:, :, token].flatten(1).float(), values[:, token // 2, :, token % 2].float()


def _views(storage: Tensor, chunk: NativeChunk, layer: int, position: int, dim: int) -> tuple[Tensor, Tensor, int]:
    """A block's keys [kv_heads, dim / 2, size, 2] and values [kv_heads, size / 2, dim, 2] in bf16, and the token in it."""
    size = storage.shape[-1] * 2 // dim
    block = storage[chunk.table[position // size], layer].view(torch.bfloat16)  # [kv_heads, 2, size * dim]
    keys, values = block.unbind(1)
    return keys.view(-1, dim // 2, size, 2), values.view(-1, size // 2, dim, 2), position % size
