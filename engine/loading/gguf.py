"""Weights of a GGUF file, memory-mapped and dequantized to fp32.

Measured on the default model (134.5 M weights, Q4_1 and Q8_0, 2 cores): `gguf`'s own dequantization takes 0.65 s, the torch
forms in `engine.loading.dequantize` 0.3 s (the floor, writing 538 MB of fresh pages, is 0.15 s).

llama.cpp reorders the rows of q and k of some architectures so that the two halves of a rotary pair are side by side
(`Family.gguf_pairs_adjacent`); the decoder uses the half-split order, so they are put back. Weights of norms need no change:
llama.cpp's converter adds what a family's checkpoints leave out of them.
"""

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.gguf_header import GgufHeader, read_gguf_header
from configs.model.source import ModelError
from configs.model.stored_tensor import StoredTensor
from engine.loading.dequantize import dequantize_into, to_q8_0
from engine.loading.gguf_tensors import gguf_tensors
from engine.loading.reader import Assemble, Loaded_co, in_fp32
from engine.loading.stored import GROUPED, GroupKind
from engine.models.family import Shape
from engine.models.layout import check_shapes, gguf_names
from engine.models.registry import family_of

_ROPE_FACTORS = "rope_freqs.weight"


def load_gguf(path: Path, config: ModelConfig, assemble: Assemble[Loaded_co]) -> Loaded_co:
    """What `assemble` makes of the tensors of the GGUF file at `path`, and of the further parts of a split one.

    Raises:
        ModelError: tensors are missing, unexpected, cut off, or of another shape or type than described.
    """
    header = read_gguf_header(path)
    reader = _Gguf(header, config)
    check_shapes(header.path.name, reader.shapes, config)
    return assemble(reader, config)


class _Gguf:
    """A `TensorReader` over the mapped file, or the parts that it is split into, under Hugging Face names."""

    def __init__(self, header: GgufHeader, config: ModelConfig) -> None:
        tensors = gguf_tensors(header)
        self._files = {path: _mapped(path) for path in {tensor.path for tensor in tensors.values()}}
        self.rope_factors = self._rope_factors(tensors.pop(_ROPE_FACTORS, None), config.rotated // 2)
        names = gguf_names(config)  # an unknown tensor keeps its own name and is refused with the shapes
        self._tensors = {names.get(name, name): tensor for name, tensor in tensors.items()}
        self._interleaved = _interleaved(config)
        self.shapes: Mapping[str, Shape] = {name: tensor.shape for name, tensor in self._tensors.items()}

    def blocks(self, name: str) -> tuple[str, Tensor] | None:
        return self._tensors[name].kind, self._rows(name)

    def group_kind(self, name: str) -> GroupKind | None:
        return GROUPED.get(self._tensors[name].kind)

    def groups(self, name: str) -> Tensor:
        kind, rows = self._tensors[name].kind, self._rows(name)
        return rows if GROUPED[kind] == kind else to_q8_0(rows, GGMLQuantizationType[kind])

    def read_into(self, name: str, out: Tensor) -> None:
        tensor = self._tensors[name]
        with in_fp32(out) as values:
            if len(tensor.shape) == 1:  # a block may reach over several of its entries
                self._dequantize(tensor, self._bytes(tensor), values)
                values.copy_(self._in_our_order(name, values))
            else:
                self._dequantize(tensor, self._rows(name), values)

    def whole(self, name: str) -> Tensor | None:
        tensor = self._tensors[name]
        if tensor.kind != "F32" or name in self._interleaved:
            return None
        return self._bytes(tensor).view(torch.float32).view(tensor.shape)

    def forget(self, name: str) -> None:
        """Its pages leave this process; those of the page cache stay. Else a model is in memory twice by the end."""
        tensor = self._tensors[name]
        start = -(-tensor.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (tensor.offset + tensor.size) // mmap.PAGESIZE * mmap.PAGESIZE - start
        if length > 0:
            self._files[tensor.path].madvise(mmap.MADV_DONTNEED, start, length)

    def _rows(self, name: str) -> Tensor:
        """The stored bytes of a matrix, uint8 [rows, bytes of a row], rows in our order."""
        tensor = self._tensors[name]
        return self._in_our_order(name, self._bytes(tensor).view(tensor.shape[0], -1))

    def _in_our_order(self, name: str, rows: Tensor) -> Tensor:
        heads = self._interleaved.get(name)
        return rows if not heads else rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def _bytes(self, tensor: StoredTensor) -> Tensor:
        return torch.frombuffer(self._files[tensor.path], dtype=torch.uint8, count=tensor.size, offset=tensor.offset)

    def _dequantize(self, tensor: StoredTensor, stored: Tensor, out: Tensor) -> None:
        dequantize_into(stored.reshape(-1), GGMLQuantizationType[tensor.kind], out)

    def _rope_factors(self, tensor: StoredTensor | None, wanted: int) -> Tensor | None:
        if tensor is None:
            return None
        if prod(tensor.shape) != wanted:
            raise ModelError(f"{tensor.path.name}: {_ROPE_FACTORS} has {prod(tensor.shape)} values, not {wanted}.")
        out = torch.empty(wanted)
        self._dequantize(tensor, self._bytes(tensor), out)
        return out


def _mapped(path: Path) -> mmap.mmap:
    """A file in memory: a private, writable mapping, since torch warns about read-only memory. Nothing writes to it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _interleaved(config: ModelConfig) -> dict[str, int]:
    """The tensors whose rows llama.cpp has reordered, with their numbers of heads."""
    family = family_of(config)
    if not family.gguf_pairs_adjacent:
        return {}
    heads = {"q": config.heads, "k": config.kv_heads}
    return {tensor.hf: heads[tensor.spec.role] for tensor in family.tensors(config) if tensor.spec.role in heads}
