"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split form: dimension i is paired with i + n/2.

Floor at one row of 12 heads of 64: 3 kB read and written, under 1 µs; measured 6 µs, the dispatch of four eager ops.
"""

import torch
from torch import Tensor


def rope_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head in place: queries and keys of a step in one call.

    Args:
        x: fp32 [tokens, heads, dim], last dimension contiguous; overwritten.
        cos: fp32 [tokens, 1, 1, dim / 2].
        sin: fp32 [tokens, 1, 2, dim / 2], its first half negated: what the swapped halves are multiplied by.

    Returns:
        x.
    """
    tokens, heads, dim = x.shape
    halves = x.view(tokens, heads, 2, dim // 2)
    swapped = halves.flip(2)
    halves.mul_(cos).addcmul_(swapped, sin)
    return x


def rope_reference(x: Tensor, angles: Tensor, scale: float) -> Tensor:
    """The definition, in fp64: each pair (i, i + n/2) is rotated by its angle, then scaled.

    Args:
        x: [tokens, heads, dim].
        angles: radians, [tokens, dim / 2].
        scale: magnitude of the rotation (YaRN's attention factor, else 1).

    Returns:
        fp32 of x's shape.
    """
    first, second = x.double().chunk(2, dim=-1)
    turned = (
        torch.complex(first, second) * torch.polar(torch.full_like(angles, scale), angles).to(torch.complex128)[:, None]
    )
    return torch.cat((turned.real, turned.imag), dim=-1).float()
