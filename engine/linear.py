"""A product with one of a layer's weights, as decoders call it on any device, and the plain one."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class Product(Protocol):
    """x W^T + b, however W is held.

    Contract: takes [rows, columns] with contiguous columns, gives a new [rows, outputs] in x's type. Never waits for the device.
    """

    @property
    def nbytes(self) -> int:
        """Device memory it holds, which is also what one call reads of it."""
        ...

    def __call__(self, x: Tensor, adapters: Tensor | None = None) -> Tensor:
        """The product.

        Args:
            x: [rows, columns].
            adapters: int64 [rows], index of each row's LoRA adapter, 0: none; None if no row has one. Only a product that holds
                adapters reads it; the others are the same for all rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight as it is, [outputs, columns] in x's type, through torch (on a GPU: cuBLAS)."""

    weight: Tensor
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Memory it holds."""
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def __call__(self, x: Tensor, adapters: Tensor | None = None) -> Tensor:
        """[rows, columns] to [rows, outputs]."""
        return F.linear(x, self.weight, self.bias)
