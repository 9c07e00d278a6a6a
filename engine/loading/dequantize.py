"""GGUF storage types to fp32.

Torch does F32, F16, BF16, Q8_0, Q4_0 and Q4_1 straight into their place, bit for bit what `gguf.quants` computes (a test
compares them); the K types go through `gguf.quants` itself.
"""

import torch
from gguf import quants
from gguf.constants import GGMLQuantizationType
from torch import Tensor

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_K_TYPES = (GGMLQuantizationType.Q4_K, GGMLQuantizationType.Q5_K, GGMLQuantizationType.Q6_K)
_BLOCKS_OF_32 = (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)
SUPPORTED = frozenset(int(kind) for kind in (*_PLAIN, *_BLOCKS_OF_32, *_K_TYPES))

_BYTES = {GGMLQuantizationType.Q8_0: 34, GGMLQuantizationType.Q4_0: 18, GGMLQuantizationType.Q4_1: 20}
_AT_ONCE = 8192  # blocks: 1 MB of results, so that intermediates stay in cache


def dequantize_into(stored: Tensor, kind: GGMLQuantizationType, out: Tensor) -> None:
    """Fill `out` (fp32, contiguous) with the values of `stored` (uint8 [bytes], contiguous), which is of type `kind`."""
    if kind in _PLAIN:
        out.view(-1).copy_(stored.view(_PLAIN[kind]))
    elif kind in _K_TYPES:
        out.view(-1).copy_(torch.from_numpy(quants.dequantize(stored.numpy(), kind)))
    else:
        blocks, values = stored.view(-1, _BYTES[kind]), out.view(-1, 32)
        for some, their in zip(torch.split(blocks, _AT_ONCE), torch.split(values, _AT_ONCE), strict=True):
            _blocks_of_32(some, kind, their)


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
