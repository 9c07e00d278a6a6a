"""Products with weights as only a GPU holds them: one small object for each way, all called the same way (`engine.linear`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.linear import Product
from kernels.gpu.linear.fp8 import Fp8Matrix, fp8_linear
from kernels.gpu.linear.quantized import quantized_linear
from kernels.gpu.linear.quantized_matrix import QuantizedMatrix
from kernels.gpu.linear.split_sums import PartialSums


@dataclass(frozen=True, slots=True)
class Grouped:
    """A weight in the 4- or 8-bit groups its file has, unpacked on the way (`kernels.gpu.linear.quantized`). More rows than
    the kernel is meant for go through cuBLAS on unpacked tiles: their last bits differ from the kernel's. `partial_sums` is memory
    that all products of a device may share; without it a call makes its own."""

    matrix: QuantizedMatrix
    bias: Tensor | None = None
    partial_sums: PartialSums | None = None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.matrix.nbytes + _nbytes(self.bias)

    def __call__(self, x: Tensor, adapters: Tensor | None = None) -> Tensor:
        """[rows, columns] to [rows, outputs], unpacking on the way."""
        return quantized_linear(x, self.matrix, self.bias, partial_sums=self.partial_sums)


@dataclass(frozen=True, slots=True)
class Fp8:
    """A weight rounded to 8-bit floats, times activations rounded to them (`kernels.gpu.linear.fp8`)."""

    matrix: Fp8Matrix
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.matrix.values.nbytes + self.matrix.scales.nbytes + _nbytes(self.bias)

    def __call__(self, x: Tensor, adapters: Tensor | None = None) -> Tensor:
        """[rows, columns] to [rows, outputs]; x is rounded row by row."""
        return fp8_linear(x, self.matrix, self.bias)


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Weights of different kinds stacked along their outputs: q, k and v of a file that keeps v in more bits."""

    parts: Sequence[Product]

    @property
    def nbytes(self) -> int:
        """Of all parts."""
        return sum(part.nbytes for part in self.parts)

    def __call__(self, x: Tensor, adapters: Tensor | None = None) -> Tensor:
        """[rows, columns] to [rows, outputs of all parts]."""
        return torch.cat([part(x, adapters) for part in self.parts], dim=1)


def _nbytes(bias: Tensor | None) -> int:
    return 0 if bias is None else bias.nbytes
