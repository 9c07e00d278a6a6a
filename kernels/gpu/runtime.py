"""What all Triton kernels here share: whether they are interpreted, and how they are described to the ahead-of-time build.

Triton's interpreter (`TRITON_INTERPRET=1`) runs a kernel's program on CPU tensors with numpy, so that results can be checked
without a GPU. It has no bf16 or fp8 arithmetic: such values must be converted to fp32 as soon as they are loaded, and dots
computed in fp32. A kernel takes `INTERPRETED: tl.constexpr` and passes what it loads through `operand`:

    k = operand(tl.load(pointers, mask, 0.0), INTERPRETED)     # fp32 if interpreted, else as it is: tensor cores want 16 bits
    s = tl.dot(q, k)                                           # accumulates in fp32 either way
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@triton.jit
def operand(x, INTERPRETED: tl.constexpr):
    """`x` in a type that `tl.dot` accepts: fp32 if interpreted, else unchanged."""
    if INTERPRETED:
        x = x.to(tl.float32)
    return x


@dataclass(frozen=True, slots=True)
class Variant:
    """One build of a kernel, for `python -m kernels.gpu.build`.

    Attributes:
        name: shape and type, as in `llama-8b bf16`.
        kernel: the `@triton.jit` function.
        signature: argument name -> Triton type: `*bf16`, `*fp32`, `*i32`, `i32`, `i64`, `fp32`; the other arguments are in
            `constants`.
        constants: values of `tl.constexpr` arguments (and of arguments specialised to a value, such as 1).
        warps: per program.
        stages: of the software pipeline.
        aligned: arguments that are multiples of 16 (pointers and strides), as the launcher would find at run time.
        archs: compute capabilities that this configuration is for, such as `(80, 90)`; empty for all.
        resident: how many programs one multiprocessor must hold at a time.
        registers: the most that a thread may have; None: the compiler's choice.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    aligned: tuple[str, ...] = ()
    archs: tuple[int, ...] = ()
    resident: int = 0
    registers: int | None = None


def sent(host: Tensor, device: torch.device) -> Tensor:
    """`host` on `device`, without waiting for the device: through pinned memory, which torch keeps until the copy is done.
    Must not be called while this thread captures a graph: pinning may ask the driver for memory."""
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
