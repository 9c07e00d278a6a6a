"""GGUF storage types to fp32, bit for bit what `gguf.quants` and, for Q1_0, ggml computes, and some of them to 8-bit groups.

Torch does plain numbers, Q8_0, Q4_0 and Q4_1 straight into their place. Every other type goes through `gguf.quants`, in pieces that
stay in cache, which doubles its speed: 50 M (IQ2 and IQ3), 100 M (IQ1, IQ4) to 500 M values a second on one core, while other
threads do the same. Half a billion weights take 1 to 10 s of one core.
"""

import numpy as np
import torch
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

_PLAIN = {
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_BLOCKS_OF_32 = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)
_GROUP = 32
_AT_ONCE = 2**17  # values: half a megabyte of results, so that intermediates stay in cache

# Where the fp16 scale is in a block whose weights are all that scale times whole numbers of 8 bits.
_SCALE_AT = {
    GGMLQuantizationType.Q1_0: 0,
    GGMLQuantizationType.Q5_0: 0,
    GGMLQuantizationType.IQ4_NL: 0,
    GGMLQuantizationType.TQ1_0: 52,
    GGMLQuantizationType.TQ2_0: 64,
}
_HALF_RANGE = (104, 143)  # of an exponent byte that stands for 2^(e - 128): the powers of two that fp16 has


def dequantize_into(stored: Tensor, kind: GGMLQuantizationType, out: Tensor) -> None:
    """Fill `out` (fp32, contiguous) with the values of `stored` (uint8 [bytes], contiguous), which is of type `kind`."""
    if kind in _PLAIN:
        out.view(-1).copy_(stored.view(_PLAIN[kind]))
        return
    block, size = GGML_QUANT_SIZES[kind]
    blocks, values, at_once = stored.view(-1, size), out.view(-1, block), _AT_ONCE // block
    for some, their in zip(torch.split(blocks, at_once), torch.split(values, at_once), strict=True):
        if kind in _BLOCKS_OF_32:
            _blocks_of_32(some, kind, their)
        else:
            their.copy_(_numbers(some, kind))


def to_q8_0(rows: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """Weights as groups of type Q8_0, each the same number as before: uint8 [rows, bytes] of both.

    Args:
        rows: as stored.
        kind: a type of one scale and small whole numbers: Q1_0, Q5_0, IQ4_NL, TQ1_0, TQ2_0 or MXFP4. Of MXFP4's scales, powers
            of two, those under 2^-24 or over 2^15 are no fp16: weights are then rounded to a multiple of 2^-24, or cut at
            127 * 2^15.
    """
    block, size = GGML_QUANT_SIZES[kind]
    blocks, repeats = rows.reshape(-1, size), block // _GROUP
    out = torch.empty((len(blocks) * repeats, 34), dtype=torch.uint8)
    at_once = _AT_ONCE // block
    for some, their in zip(torch.split(blocks, at_once), torch.split(out, at_once * repeats), strict=True):
        scale = _scale(some, kind).repeat_interleave(repeats, 0)
        whole = _numbers(some, kind).view(-1, _GROUP) / torch.where(scale == 0, 1.0, scale)
        their[:, :2] = scale.half().view(torch.uint8)
        their[:, 2:] = whole.nan_to_num_(0.0).round_().clamp_(-127, 127).to(torch.int8).view(torch.uint8)
    return out.view(len(rows), -1)


def _numbers(blocks: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """uint8 [n, bytes of a block] as fp32 [n, values of a block]."""
    if kind == GGMLQuantizationType.Q1_0:  # a scale and signs, 1 for plus, which `gguf.quants` does not know
        bits = blocks[:, 2:, None] >> torch.arange(8, dtype=torch.uint8) & 1
        return torch.where(bits.flatten(1) == 1, _half(blocks[:, :2]), -_half(blocks[:, :2]))
    with np.errstate(all="ignore"):  # a damaged scale is no number, and what is computed with it is none
        return torch.from_numpy(quants.dequantize(blocks.reshape(-1).numpy(), kind)).view(len(blocks), -1)


def _scale(blocks: Tensor, kind: GGMLQuantizationType) -> Tensor:
    """The scale of each block, fp32 [n, 1]."""
    if kind == GGMLQuantizationType.MXFP4:
        exponent = blocks[:, :1].int().clamp_(*_HALF_RANGE)
        return ((exponent - 1) << 23).view(torch.float32)
    at = _SCALE_AT[kind]
    return _half(blocks[:, at : at + 2])


def _blocks_of_32(blocks: Tensor, kind: GGMLQuantizationType, out: Tensor) -> None:
    """`blocks` is uint8 [n, bytes]: fp16 scale (and, for Q4_1, fp16 minimum), then the quants. `out` is fp32 [n, 32].

    In the 4-bit types, byte i holds value i in its low half and value i + 16 in its high half.
    """
    scale = _half(blocks[:, :2])
    if kind == GGMLQuantizationType.Q8_0:
        torch.mul(blocks[:, 2:].view(torch.int8), scale, out=out)
        return
    if kind == GGMLQuantizationType.Q4_0:
        packed = blocks[:, 2:]
        torch.mul((packed & 15).view(torch.int8) - 8, scale, out=out[:, :16])
        torch.mul((packed >> 4).view(torch.int8) - 8, scale, out=out[:, 16:])
        return
    minimum, packed = _half(blocks[:, 2:4]), blocks[:, 4:]
    torch.addcmul(minimum, (packed & 15).float(), scale, out=out[:, :16])
    torch.addcmul(minimum, (packed >> 4).float(), scale, out=out[:, 16:])


def _half(pairs: Tensor) -> Tensor:
    """uint8 [n, 2], little-endian fp16, as fp32 [n, 1]."""
    return pairs.contiguous().view(torch.float16).float()
