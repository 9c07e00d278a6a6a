"""Root-mean-square norm, fused with the residual addition before it.

normed = y * rsqrt(mean(y^2) + eps) * weight with y = residual + x, or y = x (Zhang and Sennrich, arXiv 1910.07467, equation 4).

The last norm of a model is of some rows only, those that a result is wanted of, and nobody reads its sums: `last_norm` gathers,
adds and normalizes in one launch.

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


@triton.jit(do_not_specialize_on_alignment=["rows"])
def _rms_norm(
    x,
    residual,
    rows,
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
    source = row
    if rows is not None:
        source = tl.load(rows + row)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    value = tl.load(x + source * x_stride + columns, inside, 0.0).to(tl.float32)
    if RESIDUAL:
        value += tl.load(residual + source * residual_stride + columns, inside, 0.0).to(tl.float32)
        rounded = value.to(x.dtype.element_ty)
        if total is not None:
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
    _check(x, weight, residual)
    normed = torch.empty((rows, hidden), dtype=x.dtype, device=x.device)
    total = x if residual is None else torch.empty_like(normed)
    _launch(x, residual, None, weight, normed, total, eps)
    return normed, total


def last_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, rows: Tensor, *, out: Tensor | None = None
) -> Tensor:
    """The norm of some rows of the sum: [n, hidden] in the type of `x`.

    Args:
        x: as in `rms_norm`.
        weight: likewise.
        eps: likewise.
        residual: likewise.
        rows: int64 [n], of `x` and of `residual`, contiguous.
        out: receives the result, contiguous.

    Raises:
        ValueError: as `rms_norm`, or `rows` or `out` have another type or shape.
    """
    _check(x, weight, residual)
    wanted = (*rows.shape, x.shape[1])
    out = torch.empty(wanted, dtype=x.dtype, device=x.device) if out is None else out
    if rows.dtype != torch.int64 or not rows.is_contiguous() or out.shape != wanted or out.dtype != x.dtype:
        raise ValueError(
            f"rows {rows.dtype} {tuple(rows.shape)} must be contiguous int64 [n], and out {out.dtype} {tuple(out.shape)} "
            f"must be [n, {x.shape[1]}] in {x.dtype}"
        )
    _launch(x, residual, rows, weight, out, None, eps)
    return out


def _check(x: Tensor, weight: Tensor, residual: Tensor | None) -> None:
    if weight.shape != (x.shape[1],) or x.stride(1) != 1 or weight.stride(0) != 1:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} must be contiguous along the same columns"
        )
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype or residual.stride(1) != 1):
        raise ValueError(f"residual {tuple(residual.shape)} {residual.dtype} must be like x {tuple(x.shape)} {x.dtype}")


def _launch(
    x: Tensor,
    residual: Tensor | None,
    rows: Tensor | None,
    weight: Tensor,
    normed: Tensor,
    total: Tensor | None,
    eps: float,
) -> None:
    hidden = x.shape[1]
    block, warps = config_for(hidden)
    before = x if residual is None else residual
    if len(normed):
        _rms_norm[(len(normed),)](
            x,
            before,
            rows,
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


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `rms_norm` computes, in plain torch."""
    total = x if residual is None else (residual.float() + x.float()).to(x.dtype)
    value = total.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps)
    return (value * weight.float()).to(x.dtype), total


def reference_last_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None, rows: Tensor) -> Tensor:
    """What `last_norm` computes, in plain torch."""
    return reference_rms_norm(x[rows], weight, eps, None if residual is None else residual[rows])[0]


def _variant(model: str, hidden: int, dtype: str, residual: bool, *, last: bool = False) -> Variant:
    block, warps = config_for(hidden)
    pointers = ("x", "residual", "normed", *(() if last else ("total",)))
    strides = ("x_stride", "residual_stride")
    return Variant(
        f"{model} {dtype}{' residual' if residual else ''}{' last' if last else ''}",
        _rms_norm,
        dict.fromkeys(pointers, f"*{dtype}")
        | {"weight": "*fp32", "eps": "fp32"}
        | ({"rows": "*i64"} if last else {})
        | dict.fromkeys(strides, "i32"),
        {"HIDDEN": hidden, "BLOCK": block, "RESIDUAL": residual} | ({"total": None} if last else {"rows": None}),
        warps=warps,
        aligned=(*pointers, "weight", *strides),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("llama-8b", 4096, "bf16", True),
    _variant("llama-8b", 4096, "bf16", False),
    _variant("llama-8b", 4096, "bf16", True, last=True),
    _variant("llama-8b", 4096, "fp16", True),
    _variant("smollm2", 576, "bf16", True),
    _variant("qwen-7b", 3584, "bf16", True),
    _variant("llama-70b", 8192, "bf16", True),
    _variant("widest", WIDEST, "bf16", True),
)
