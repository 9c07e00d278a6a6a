"""Rows of the embedding table by token id.

A program copies part of one row, bit for bit. `first` is for a table split over the vocabulary (Shoeybi et al., arXiv
1909.08053, section 3): each device holds a range of ids and gives zeros for the others, so that the sum over devices is complete.

Floor: rows * hidden * bytes per value * 2 over memory bandwidth: Llama-3-8B bf16, 8192 rows: 134 MB, 34 us at 4 TB/s.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant


@triton.jit(do_not_specialize_on_alignment=["ids"])
def _embed(table, ids, out, first, vocabulary, row_stride, HIDDEN: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    # A vector of one value, because the interpreter does not broadcast a scalar condition.
    line = tl.load(ids + row + tl.arange(0, 1)) - first
    held = inside & (line >= 0) & (line < vocabulary)
    values = tl.load(table + line * row_stride + columns, held, 0.0)
    tl.store(out + row * HIDDEN + columns, values, inside)


def config_for(hidden: int) -> tuple[int, int]:
    """(columns per program, warps): 8 values per thread."""
    return min(triton.next_power_of_2(hidden), 1024), 4


def embed(table: Tensor, ids: Tensor, *, first: int = 0) -> Tensor:
    """Look up rows of a table: [rows, hidden] in its type.

    Args:
        table: [vocabulary, hidden] in any float type, columns contiguous.
        ids: int64 [rows], token ids, contiguous. An id outside `[first, first + vocabulary)` gives a row of zeros.
        first: the id of the table's row 0.

    Raises:
        ValueError: ids are not int64 [rows], or the table's columns are not contiguous.
    """
    if ids.dim() != 1 or ids.dtype != torch.int64 or ids.stride(0) != 1 or table.stride(1) != 1:
        raise ValueError(
            f"ids must be contiguous int64 [rows], not {ids.dtype} {tuple(ids.shape)}; table columns contiguous"
        )
    vocabulary, hidden = table.shape
    out = torch.empty((len(ids), hidden), dtype=table.dtype, device=table.device)
    block, warps = config_for(hidden)
    if len(ids):
        grid = (len(ids), triton.cdiv(hidden, block))
        _embed[grid](table, ids, out, first, vocabulary, table.stride(0), HIDDEN=hidden, BLOCK=block, num_warps=warps)
    return out


def reference_embed(table: Tensor, ids: Tensor, *, first: int = 0) -> Tensor:
    """What `embed` computes, in plain torch."""
    held = (ids >= first) & (ids < first + len(table))
    rows = table[torch.where(held, ids - first, 0)]
    return torch.where(held[:, None], rows, torch.zeros_like(rows))


def _variant(model: str, hidden: int, dtype: str) -> Variant:
    block, warps = config_for(hidden)
    return Variant(
        f"{model} {dtype}",
        _embed,
        {"table": f"*{dtype}", "ids": "*i64", "out": f"*{dtype}"}
        | dict.fromkeys(("first", "vocabulary", "row_stride"), "i32"),
        {"HIDDEN": hidden, "BLOCK": block},
        warps=warps,
        aligned=("table", "ids", "out", "row_stride"),
    )


VARIANTS: tuple[Variant, ...] = (
    _variant("llama-8b", 4096, "bf16"),
    _variant("llama-8b", 4096, "fp16"),
    _variant("smollm2", 576, "bf16"),
    _variant("qwen-7b", 3584, "bf16"),
)
