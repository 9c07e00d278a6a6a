"""How a file of weights looks to the code that makes a model of it: tensors by their names, read one by one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from configs.model.config import ModelConfig
from engine.loading.stored import GroupKind, StoredMatrix
from engine.models.family import Shape


class TensorReader(Protocol):
    """A model's tensors by their Hugging Face names. The weights of norms are complete: a family's `norm_offset` is in them.

    Contract: `shapes` is known before any data is read. `read_into` and `whole` may be called from several threads. What
    `whole` returns is never written to and stays valid forever.

    Attributes:
        shapes: of all tensors.
        rope_factors: fp32 [dim / 2], for `engine.models.rope.Rope`; None: the file has none.
    """

    shapes: Mapping[str, Shape]
    rope_factors: Tensor | None

    def blocks(self, name: str) -> StoredMatrix | None:
        """Where a matrix is stored in a type of GGUF's; None: it has no blocks."""
        ...

    def group_kind(self, name: str) -> GroupKind | None:
        """In which groups of 32 columns `groups` gives a matrix; None: it has no such form."""
        ...

    def groups(self, name: str) -> Tensor:
        """A matrix that has a `group_kind` in these groups, uint8 [rows, bytes]: the same numbers as are stored."""
        ...

    def read_into(self, name: str, out: Tensor) -> None:
        """Fill `out`: contiguous, of the tensor's shape, in any float type on any device."""
        ...

    def whole(self, name: str) -> Tensor | None:
        """The tensor in place if it is fp32 already, otherwise None."""
        ...

    def forget(self, name: str) -> None:
        """Nothing that was given of this tensor is used any longer: what it takes in memory can be given back."""
        ...


Loaded_co = TypeVar("Loaded_co", covariant=True)


class Assemble(Protocol[Loaded_co]):
    """Makes a model's weights from its tensors, in the form that one kind of arithmetic wants."""

    def __call__(self, reader: TensorReader, config: ModelConfig) -> Loaded_co:
        """Read every tensor of the model."""
        ...


def read(reader: TensorReader, name: str) -> Tensor:
    """One tensor in fp32: in place if possible, otherwise a copy."""
    whole = reader.whole(name)
    if whole is not None:
        return whole
    out = torch.empty(reader.shapes[name])
    reader.read_into(name, out)
    return out


@contextmanager
def in_fp32(out: Tensor) -> Iterator[Tensor]:
    """`out` itself if it is fp32 in this machine's memory, otherwise a buffer that is copied to it at the end."""
    if out.dtype == torch.float32 and out.device.type == "cpu":
        yield out
        return
    buffer = torch.empty(out.shape)
    yield buffer
    out.copy_(buffer)
