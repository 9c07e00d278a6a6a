"""Merge attention over parts of the keys into attention over all of them.

With o_i the softmax-weighted values of part i and l_i the log-sum-exp of its scores: l = log sum_i exp(l_i), o = sum_i exp(l_i - l)
o_i (Dao et al. 2022, arXiv 2205.14135, section 3.1; Juravsky et al. 2024, arXiv 2402.05099, section 3.1). Parts may come from
splits of one sequence, from a prefix shared by a group, or from another store.

One program per (row, head), which takes the parts in order, a fixed number at a time: empty parts at the end change no bit.

Floor: rows * heads * (parts * (4 or 2 bytes * dim + 4) + dim * bytes) over bandwidth: 64 rows of 32 heads of 128, 8 parts fp32:
8.7 MB, 2 us.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention.tile import NOTHING
from kernels.gpu.runtime import Variant


@triton.jit
def merged(
    values, sums, parts, stride_part, stride_sum_part, D: tl.constexpr, D_PAD: tl.constexpr, PARTS: tl.constexpr
):
    """(output fp32 [D_PAD], log-sum-exp) of one row and head over `parts` parts, in their order. What other programs of the same
    launch have written is read from L2, where it is."""
    dims = tl.arange(0, D_PAD)
    top = NOTHING
    total = 0.0
    acc = tl.zeros([D_PAD], tl.float32)
    for first in range(0, parts, PARTS):
        index = (first + tl.arange(0, PARTS)).to(tl.int64)
        part = tl.load(sums + index * stride_sum_part, index < parts, float("-inf"), cache_modifier=".cg")
        some = part > float("-inf")  # the output of an empty part may be anything, and is not read
        places = values + (index * stride_part)[:, None] + dims[None, :]
        value = tl.load(places, some[:, None] & (dims < D)[None, :], 0.0, cache_modifier=".cg")
        new_top = tl.maximum(top, tl.max(part, 0))
        weight = tl.exp(part - new_top)
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink + tl.sum(value.to(tl.float32) * weight[:, None], 0)
        top = new_top
    weight = tl.where(total > 0, total, 1.0)
    return acc / weight, tl.where(total > 0, top + tl.log(weight), float("-inf"))


@triton.jit(do_not_specialize=["parts", "stride_sum_part"], do_not_specialize_on_alignment=["log_sums", "log_sum"])
def _merge_states(
    outputs,
    log_sums,
    out,
    log_sum,
    parts,
    stride_part,
    stride_row,
    stride_head,
    stride_sum_part,
    stride_sum_row,
    stride_sum_head,
    stride_out_row,
    stride_out_head,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    PARTS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1).to(tl.int64)
    sums = log_sums + row * stride_sum_row + head * stride_sum_head
    values = outputs + row * stride_row + head * stride_head
    result, result_sum = merged(values, sums, parts, stride_part, stride_sum_part, D, D_PAD, PARTS)
    dims = tl.arange(0, D_PAD)
    tl.store(out + row * stride_out_row + head * stride_out_head + dims, result.to(out.dtype.element_ty), dims < D)
    tl.store(log_sum + row * tl.num_programs(1) + head, result_sum)


def config_for(dim: int) -> tuple[int, int]:
    """(parts taken at a time, warps): 32 KiB of fp32 in flight."""
    return max(8192 // triton.next_power_of_2(dim), 16), 4


def merge_states(
    outputs: Tensor, log_sums: Tensor, *, out: Tensor | None = None, log_sum: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(attention over all parts, log-sum-exp of all scores).

    Args:
        outputs: [parts, rows, heads, dim] in any float type, dim contiguous.
        log_sums: fp32 [parts, rows, heads], natural log; -inf: the part saw no key, and its output is not read.
        out: receives the result in its own type, [rows, heads, dim], dim contiguous; by default a new tensor of `outputs`' type.
        log_sum: receives fp32 [rows, heads], contiguous.

    Returns:
        [rows, heads, dim] and fp32 [rows, heads]; 0 and -inf where all parts are empty.

    Raises:
        ValueError: shapes or types do not fit together.
    """
    parts, rows, heads, dim = outputs.shape
    if log_sums.shape != (parts, rows, heads) or log_sums.dtype != torch.float32:
        raise ValueError(f"log_sums {tuple(log_sums.shape)} {log_sums.dtype} must be fp32 {(parts, rows, heads)}")
    out = outputs.new_empty((rows, heads, dim)) if out is None else out
    log_sum = log_sums.new_empty((rows, heads)) if log_sum is None else log_sum
    if out.shape != (rows, heads, dim) or log_sum.shape != (rows, heads) or not log_sum.is_contiguous():
        raise ValueError(
            f"out {tuple(out.shape)} and log_sum {tuple(log_sum.shape)} (contiguous) must be for {rows} rows"
        )
    if outputs.stride(3) != 1 or out.stride(2) != 1:
        raise ValueError("outputs and out must be contiguous along dim")
    at_once, warps = config_for(dim)
    if rows:
        _merge_states[(rows, heads)](
            outputs,
            log_sums,
            out,
            log_sum,
            parts,
            *outputs.stride()[:3],
            *log_sums.stride(),
            *out.stride()[:2],
            D=dim,
            D_PAD=triton.next_power_of_2(dim),
            PARTS=at_once,
            num_warps=warps,
        )
    return out, log_sum


def reference_merge_states(outputs: Tensor, log_sums: Tensor) -> tuple[Tensor, Tensor]:
    """What `merge_states` computes, in plain torch and fp64."""
    log_sum = log_sums.double().logsumexp(dim=0)
    weights = (log_sums.double() - log_sum.clamp(min=-1e300)).exp()[..., None]
    out = outputs.double().masked_fill(weights == 0, 0.0) * weights
    return out.sum(dim=0).to(outputs.dtype), log_sum.float()


def _variant(name: str, dim: int, dtype: str) -> Variant:
    at_once, warps = config_for(dim)
    strides = [name for name in _merge_states.arg_names if name.startswith("stride_")]
    return Variant(
        name,
        _merge_states,
        {"outputs": "*fp32", "log_sums": "*fp32", "out": f"*{dtype}", "log_sum": "*fp32"}
        | dict.fromkeys(("parts", *strides), "i32"),
        {"D": dim, "D_PAD": triton.next_power_of_2(dim), "PARTS": at_once},
        warps=warps,
        aligned=("outputs", "log_sums", "out", "log_sum", *(each for each in strides if "sum" not in each)),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("llama-8b bf16", 128, "bf16"),
    _variant("llama-8b fp16", 128, "fp16"),
    _variant("smollm2 bf16", 64, "bf16"),
    _variant("gemma-2 bf16", 256, "bf16"),
    _variant("dim 80 fp32", 80, "fp32"),
)
