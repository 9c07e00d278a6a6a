"""8-bit floats by integer operations: e4m3, 4 bits of exponent, 3 of mantissa, no infinities (arXiv 2209.05433, section 3).

The same for all chips and for the interpreter: Triton converts to e4m3 only from compute capability 8.9 on, and its interpreter
converts wrongly.

Quantizing takes two steps, so that it can be repeated with a larger scale and give what that scale would have given at once:
(1) `shortened` rounds to 4 significant bits, to nearest even, whatever the exponent; (2) `encoded` takes such values divided by
a power of two. That is exact for e4m3's normal numbers; below 2^-6 it truncates towards zero. Truncating to a grid and then to a
coarser one is the same as truncating to the coarser one at once, whereas rounding twice is not rounding once. Together the two
steps do what a conversion instruction does, except for values below 2^-6, which may be off by 2^-9 instead of half of that.

Scales are powers of two: multiplying by one loses nothing, neither here nor where the values are read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

LEAST_SCALE = 2.0**-67  # of a block of zeros; its inverse is finite


@triton.jit
def shortened(x):
    """fp32 rounded to 4 significant bits, to nearest even. Values that are not finite stay as they are."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) & ~0xFFFFF
    return tl.where((bits & 0x7FFFFFFF) < 0x7F800000, rounded, bits).to(tl.float32, bitcast=True)


@triton.jit
def finite_size(x):
    """The bits of |x| as int32, which sort like the values; 0 where x is not finite."""
    size = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.where(size < 0x7F800000, size, 0)


@triton.jit
def scale_of(size):
    """The power of two that brings the largest value, given by its `finite_size`, into [128, 256): e4m3 ends at 448."""
    exponent = tl.maximum(size >> 23, 67)
    return ((exponent - 7) << 23).to(tl.float32, bitcast=True)


@triton.jit
def inverse_of(scale):
    """1 / scale, exactly, which a division on a GPU is not."""
    return ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def encoded(x):
    """uint8 codes of `shortened` values times a power of two: truncated below 2^-6, at most 448, NaN if not finite."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    small = size < (121 << 23)
    code = tl.where(small, (tl.where(small, tl.abs(x), 0.0) * 512.0).to(tl.int32), tl.minimum((size >> 20) - 960, 0x7E))
    code = tl.where(size < 0x7F800000, code, 0x7F)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def decoded(code):
    """The fp32 values of uint8 codes."""
    code = code.to(tl.int32)
    size = code & 0x7F
    normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
    value = tl.where(size < 0x7F, value, float("nan"))
    # The sign bit is set, not the value negated: Triton 3.6 negates by subtracting from 0, which turns -0 into 0.
    sign = (code & 0x80) << 24
    return (value.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


def reference_shortened(x: Tensor) -> Tensor:
    """What `shortened` computes, in plain torch."""
    mantissa, exponent = torch.frexp(x)
    return torch.where(x.isfinite(), torch.ldexp((mantissa * 16).round() / 16, exponent), x)


def reference_scale(values: Tensor) -> Tensor:
    """What `scale_of` computes for the largest value of the last two dimensions, in plain torch."""
    top = values.abs().where(values.isfinite(), 0).amax((-2, -1))
    scale = torch.ldexp(torch.ones_like(top), torch.frexp(top).exponent - 8)
    return scale.where(top > 0, 0).clamp(min=LEAST_SCALE)


def reference_encoded(x: Tensor) -> Tensor:
    """What `encoded` computes, in plain torch: float8_e4m3fn."""
    cut = torch.where(x.abs() < 2.0**-6, (x * 512).trunc() / 512, x.clamp(-448, 448))
    return cut.where(x.isfinite(), torch.nan).to(torch.float8_e4m3fn)
