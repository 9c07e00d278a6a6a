"""A tile of heads in two halves, as the rotary embedding pairs them: what the kernels that write keys and values do to it.

Everywhere, a head has `DIM` values, `HALF` is DIM / 2 rounded up to a power of two, and a tile is two fp32 tensors [lines, HALF]
with the first and the second half of each head; columns from DIM / 2 on are 0.
"""

from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

from kernels.gpu.runtime import Variant


@triton.jit
def load_halves(source, starts, valid, DIM: tl.constexpr, HALF: tl.constexpr):
    """Both halves of the heads that begin at `source + starts`: fp32 [lines, HALF] each, 0 if not `valid` and from DIM / 2 on."""
    columns = tl.arange(0, HALF)
    inside = valid[:, None] & (columns < DIM // 2)[None, :]
    at = source + starts[:, None] + columns[None, :]
    return tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + DIM // 2, inside, 0.0).to(tl.float32)


@triton.jit
def store_halves(target, starts, valid, low, high, DIM: tl.constexpr, HALF: tl.constexpr):
    """The inverse of `load_halves`, in the type that `target` points to."""
    columns = tl.arange(0, HALF)
    inside = valid[:, None] & (columns < DIM // 2)[None, :]
    at = target + starts[:, None] + columns[None, :]
    tl.store(at, low.to(target.dtype.element_ty), inside)
    tl.store(at + DIM // 2, high.to(target.dtype.element_ty), inside)


@triton.jit
def norm_halves(low, high, weight, eps, DIM: tl.constexpr, HALF: tl.constexpr):
    """Root-mean-square norm of each line, times `weight` [DIM]."""
    columns = tl.arange(0, HALF)
    inside = columns < DIM // 2
    inverse = tl.rsqrt(tl.sum(low * low + high * high, 1) / DIM + eps)[:, None]
    gain_low = tl.load(weight + columns, inside, 0.0).to(tl.float32)[None, :]
    gain_high = tl.load(weight + DIM // 2 + columns, inside, 0.0).to(tl.float32)[None, :]
    return low * inverse * gain_low, high * inverse * gain_high


@triton.jit
def turn_halves(low, high, cos, sin, positions, valid, DIM: tl.constexpr, HALF: tl.constexpr):
    """Rotate each line by the angles of its position; `positions` and `valid` of shape [1] hold for all lines."""
    columns = tl.arange(0, HALF)
    inside = valid[:, None] & (columns < DIM // 2)[None, :]
    at = positions[:, None] * (DIM // 2) + columns[None, :]
    cosine, sine = tl.load(cos + at, inside, 0.0), tl.load(sin + at, inside, 0.0)
    return low * cosine - high * sine, high * cosine + low * sine


_MODELS = (  # name, query heads, KV heads, dim, type, whether queries and keys are normed
    ("llama-8b", 32, 8, 128, "bf16", False),
    ("llama-8b", 32, 8, 128, "fp16", False),
    ("smollm2", 9, 3, 64, "bf16", False),
    ("qwen3-8b", 32, 8, 128, "bf16", True),
    ("dim-80", 32, 32, 80, "bf16", False),
    ("dim-256", 8, 4, 256, "bf16", False),
)


def variants(
    kernel: Any, config_for: Callable[[int, int], Mapping[str, int]], pointers: Mapping[str, str]
) -> tuple[Variant, ...]:
    """Variants of a kernel that writes keys and values, for blocks of 32.

    Args:
        kernel: the `@triton.jit` function.
        config_for: (kv_heads, dim) -> the constants of its shape, including `warps`.
        pointers: types of the pointers that only this kernel has.
    """
    indices, numbers = dict.fromkeys(("positions", "slots"), "i64"), ("cos", "sin", "q_norm", "k_norm")
    strides = [name for name in kernel.arg_names if name.endswith("_stride")]
    builds = []
    for model, heads, kv_heads, dim, dtype, norms in _MODELS:
        types = dict.fromkeys(("qkv", "q", "kv"), dtype) | indices | dict.fromkeys(numbers, "fp32") | dict(pointers)
        types = {name: kind for name, kind in types.items() if name in kernel.arg_names}
        shape = dict(config_for(kv_heads, dim))
        builds.append(
            Variant(
                f"{model} {dtype}{' norm' if norms else ''}",
                kernel,
                {name: f"*{kind}" for name, kind in types.items()}
                | dict.fromkeys(("rows", *strides), "i32")
                | {"eps": "fp32"},
                {"HEADS": heads, "KV_HEADS": kv_heads, "DIM": dim, "BLOCK_SIZE": 32, "NORMS": norms}
                | ({"scale_head_stride": 1} if "scale_head_stride" in strides else {})
                | {name: value for name, value in shape.items() if name != "warps"},
                warps=shape["warps"],
                aligned=(*types, *(each for each in strides if not each.startswith("scale"))),
            )
        )
    return tuple(builds)
