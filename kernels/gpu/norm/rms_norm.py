"""Root-mean-square norm, fused with the residual addition before it.

normed = y * rsqrt(mean(y^2) + eps) * weight with y = residual + x, or y = x (Zhang and Sennrich, arXiv 1910.07467, equation 4).

One program per row, which stays in registers: each value is read once and written once. The sum is rounded to the model's type
before it is normalized, because that is what the next layers read; everything else is fp32, rounded once at the end. A row's
result depends on that row alone.

Floor: rows * hidden * bytes per value * 4 (x, residual, norm, sum; 2 without residual) over memory bandwidth, with next to no
arithmetic: Llama-3-8B bf16, 8192 rows: 268 MB, 67 us at 4 TB/s; a decode row of 32 KiB costs a launch and nothing else.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant

WIDEST = 32768  # the most columns that fit the registers of 16 warps


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    normed,
    total,
    eps,
    x_stride,
    residual_stride,
    HIDDEN: tl.constexpr,
    BLOCK: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    value = tl.load(x + row * x_stride + columns, inside, 0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + row * residual_stride + columns, inside, 0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row * HIDDEN + columns, rounded, inside)
        value = rounded.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 0) / HIDDEN + eps)
    gain = tl.load(weight + columns, inside, 0.0).to(tl.float32)
    tl.store(normed + row * HIDDEN + columns, (value * inverse * gain).to(normed.dtype.element_ty), inside)


def config_for(hidden: int) -> tuple[int, int]:
    """(columns per program, warps) for rows of `hidden` values: about 16 values per thread.

    Raises:
        ValueError: rows are wider than the registers hold.
    """
    if hidden > WIDEST:
        raise ValueError(f"a row of {hidden} values does not fit one program, which holds {WIDEST}")
    block = triton.next_power_of_2(hidden)
    return block, min(max(block // 512, 1), 16)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(norm of the sum, the sum).

    Args:
        x: [rows, hidden] in any float type, columns contiguous.
        weight: [hidden] in any float type.
        eps: added to the mean square.
        residual: in the shape and type of `x`, or None: the sum is then `x` itself, not a copy.

    Returns:
        Two tensors [rows, hidden] in the type of `x`.

    Raises:
        ValueError: shapes or types do not fit together, or `hidden` is above `WIDEST`.
    """
    rows, hidden = x.shape
    block, warps = config_for(hidden)
    if weight.shape != (hidden,) or x.stride(1) != 1 or weight.stride(0) != 1:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be contiguous along the same columns"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.stride(1) != 1):
        raise ValueError(f"residual {tuple(residual.shape)} {residual.dtype} must be like x {tuple(x.shape)} {x.dtype}")
    normed = torch.empty((rows, hidden), dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(normed)
    if rows:
        before = x if residual is None else residual
        _rms_norm[(rows,)](
            x,
            before,
            weight,
            normed,
            total,
            eps,
            x.stride(0),
            before.stride(0),
            HIDDEN=hidden,
            BLOCK=block,
            RESIDUAL=residual is not None,
            num_warps=warps,
        )
    return normed, total


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `rms_norm` computes, in plain torch."""
    total = x if residual is None else (residual.float() + x.float()).to(x.dtype)
    value = total.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps)
    return (value * weight.float()).to(x.dtype), total


def _variant(model: str, hidden: int, dtype: str, residual: bool) -> Variant:
    block, warps = config_for(hidden)
    pointers = ("x", "residual", "normed", "total")
    strides = ("x_stride", "residual_stride")
    return Variant(
        f"{model} {dtype}{' residual' if residual else ''}",
        _rms_norm,
        dict.fromkeys(pointers, f"*{dtype}") | {"weight": "*fp32", "eps": "fp32"} | dict.fromkeys(strides, "i32"),
        {"HIDDEN": hidden, "BLOCK": block, "RESIDUAL": residual},
        warps=warps,
        aligned=(*pointers, "weight", *strides),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("llama-8b", 4096, "bf16", True),
    _variant("llama-8b", 4096, "bf16", False),
    _variant("llama-8b", 4096, "fp16", True),
    _variant("smollm2", 576, "bf16", True),
    _variant("qwen-7b", 3584, "bf16", True),
    _variant("llama-70b", 8192, "bf16", True),
    _variant("widest", WIDEST, "bf16", True),
)
