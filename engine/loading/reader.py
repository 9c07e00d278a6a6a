"""What a file of weights is to whoever makes a model of it: tensors by their names, read one by one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.models.family import Shape
from kernels.cpu.packing import Kind


class TensorReader(Protocol):
    """A model's tensors by their Hugging Face names. The weights of norms are complete: a family's `norm_offset` is in them.

    Contract: `shapes` is known before any data is read. `read_into` and `whole` may be called from several threads. What
    `whole` returns is never written to and stays valid for ever.
    """

    shapes: Mapping[str, Shape]
    rope_factors: Tensor | None  # see `engine.models.rope`

    def stored(self, name: str) -> tuple[Kind, Tensor] | None:
        """The matrix as groups of 32 columns, uint8 [rows, bytes], and how they are stored; None if it is stored otherwise."""
        ...

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out`: contiguous, of the tensor's shape, in any float type on any device."""
        ...

    def whole(self, name: str) -> Tensor | None:
        """The tensor where it lies, if it is fp32 already, else None."""
        ...


Loaded_co = TypeVar("Loaded_co", covariant=True)


class Assemble(Protocol[Loaded_co]):
    """Makes a model's weights, in the form one kind of arithmetic wants, of its tensors."""

    def __call__(self, reader: TensorReader, config: ModelConfig) -> Loaded_co:
        """Read every tensor the model has."""
        ...


def read(reader: TensorReader, name: str) -> Tensor:
    """One tensor in fp32: where it lies, or else a copy."""
    whole = reader.whole(name)
    if whole is not None:
        return whole
    out = torch.empty(reader.shapes[name])
    reader.read_into(name, out)
    return out


@contextmanager
def in_fp32(out: Tensor) -> Iterator[Tensor]:
    """`out` itself where it is fp32 on this machine's memory, else a buffer that is copied to it at the end."""
    if out.dtype == torch.float32 and out.device.type == "cpu":
        yield out
        return
    buffer = torch.empty(out.shape)
    yield buffer
    out.copy_(buffer)
