"""y = x W^T in 8-bit floats (W8A8, e4m3): one scale per output and per row of x; torch's scaled product computes it.

Shapes: x fp16 or bf16 [rows, columns], W an `Fp8Matrix` [outputs, columns], y [rows, outputs] in x's type. The tensor cores sum in
fp32, and the result is rounded to bf16. A scale is the largest finite magnitude / 448, so nothing saturates.

Floor: for few rows, outputs * columns bytes over memory bandwidth, half that of 16-bit weights; for many rows, twice the rate of
16-bit tensor cores. Quantizing x moves rows * columns * 3 bytes in one launch: 8 rows of 4096 take no longer than the launch.

Source: FP8 formats, Micikevicius et al. 2022 (arXiv 2209.05433, section 3); scales by row of both factors, as in the vector-wise
quantization of LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, section 3.1).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.runtime import Variant

LARGEST = 448.0  # the largest e4m3 value
LEAST = 1e-30  # the smallest magnitude that a scale is made from, so that its inverse is finite
MULTIPLE = 16  # torch's product needs both sizes of W to be multiples of it


@dataclass(frozen=True, slots=True)
class Fp8Matrix:
    """A weight [outputs, columns]: value = scale of its output * e4m3.

    Attributes:
        values: float8_e4m3fn [outputs, columns].
        scales: fp32 [outputs, 1].
    """

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> "Fp8Matrix":
        """Round a weight [outputs, columns] of any float type.

        Raises:
            ValueError: sizes that are not multiples of 16.
        """
        if weight.shape[0] % MULTIPLE or weight.shape[1] % MULTIPLE:
            raise ValueError(f"e4m3 weights are {list(weight.shape)}; both must be multiples of {MULTIPLE}")
        return cls(*reference_quantize_rows(weight))


def refusal(device: torch.device) -> str | None:
    """Why this device has no such product; None if it has one."""
    if device.type == "cpu":
        return None  # torch computes it on a CPU too, though not fast
    if device.type != "cuda" or torch.version.hip is not None:
        return f"scaled e4m3 products are for NVIDIA GPUs, not {device}"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 9:
        return f"scaled e4m3 products with a scale for each row need compute capability 9.0 or later; this GPU's is {major}.{minor}"
    return None


@triton.jit
def _codes(x):
    """e4m3 bit patterns of fp32 values within 448, rounded to nearest even, as torch does; NaN if not finite. With integers:
    Triton itself converts only from compute capability 8.9 on, and its interpreter converts wrongly."""
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = (((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - 960).to(tl.int32)
    # Below 2^-6 codes count multiples of 2^-9, which is what adding 2^14 leaves of the mantissa.
    small = (tl.where(size < 0x3C800000, tl.abs(x), 0.0) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, tl.minimum(normal, 0x7E))
    code = tl.where(size < 0x7F800000, code, 0x7F)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def _quantize_rows(x, values, scales, columns, x_stride, BLOCK: tl.constexpr, LEAST: tl.constexpr):
    """One program per row, which it reads twice: the second time from a cache."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    peaks = tl.full((BLOCK,), LEAST, tl.float32)
    for start in range(0, columns, BLOCK):
        inside = start + column < columns
        size = tl.abs(tl.load(x + row * x_stride + start + column, inside, 0.0).to(tl.float32))
        peaks = tl.maximum(peaks, tl.where(size < float("inf"), size, 0.0))
    peak = tl.max(peaks, 0)
    most = tl.full((), 448.0, tl.float32)
    # Exact division: a plain one is off by a bit on a GPU, and so would the codes be.
    tl.store(scales + row, tl.div_rn(peak, most))
    inverse = tl.div_rn(most, peak)
    for start in range(0, columns, BLOCK):
        inside = start + column < columns
        some = tl.load(x + row * x_stride + start + column, inside, 0.0).to(tl.float32)
        tl.store(values + row * columns + start + column, _codes(some * inverse), inside)


def config_for(columns: int) -> tuple[int, int]:
    """(columns at a time, warps) for rows of `columns` values."""
    block = min(triton.next_power_of_2(columns), 4096)
    return block, max(1, block // 512)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize x [rows, columns], rows contiguous, to float8_e4m3fn of that shape and fp32 scales [rows, 1]."""
    rows, columns = x.shape
    codes = torch.empty((rows, columns), dtype=torch.uint8, device=x.device)
    scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    if rows:
        block, warps = config_for(columns)
        _quantize_rows[(rows,)](x, codes, scales, columns, x.stride(0), BLOCK=block, LEAST=LEAST, num_warps=warps)
    return codes.view(torch.float8_e4m3fn), scales


def reference_quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `quantize_rows` computes, in plain torch."""
    peak = x.float().abs().nan_to_num_(nan=0.0, posinf=0.0).amax(dim=1, keepdim=True).clamp_(min=LEAST)
    return (x.float() * (LARGEST / peak)).to(torch.float8_e4m3fn), peak / LARGEST


def fp8_linear(x: Tensor, matrix: Fp8Matrix, bias: Tensor | None = None) -> Tensor:
    """x [rows, columns] times W^T plus `bias` [outputs]: [rows, outputs] in x's type.

    Raises:
        NotImplementedError: the device has no such product; the message says why (`refusal`).
        ValueError: x has another width, or its rows are not contiguous.
    """
    reason = refusal(x.device)
    if reason:
        raise NotImplementedError(reason)
    if x.shape[1] != matrix.values.shape[1] or x.stride(1) != 1:
        raise ValueError(
            f"x is {list(x.shape)} with strides {x.stride()}; the weights take contiguous rows of {matrix.values.shape[1]}"
        )
    if not len(x):
        return x.new_empty((0, len(matrix.values)))
    values, scales = quantize_rows(x)
    product = torch._scaled_mm(
        values,
        matrix.values.t(),
        scale_a=scales,
        scale_b=matrix.scales.t(),
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
    )
    return product.to(x.dtype)


def reference_fp8_linear(x: Tensor, matrix: Fp8Matrix, bias: Tensor | None = None) -> Tensor:
    """What `fp8_linear` computes, in plain torch: rounded factors multiplied in fp64, and not rounded to bf16."""
    values, scales = reference_quantize_rows(x)
    product = (values.double() * scales.double()) @ (matrix.values.double() * matrix.scales.double()).t()
    return (product if bias is None else product + bias.double()).to(x.dtype)


def _variant(name: str, kind: str, columns: int) -> Variant:
    block, warps = config_for(columns)
    return Variant(
        name=name,
        kernel=_quantize_rows,
        signature={"x": f"*{kind}", "values": "*u8", "scales": "*fp32", "columns": "i32", "x_stride": "i32"},
        constants={"BLOCK": block, "LEAST": LEAST},
        warps=warps,
        aligned=("x", "values", "scales", "columns", "x_stride"),
    )


VARIANTS = (
    _variant("quantize llama-8b bf16", "bf16", 4096),
    _variant("quantize smollm2 bf16", "bf16", 576),
    _variant("quantize qwen2.5-0.5b fp16", "fp16", 896),
)
