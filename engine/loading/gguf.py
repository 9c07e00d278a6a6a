"""Weights of a GGUF file, memory-mapped and dequantized to fp32.

Measured on the default model (134.5 M weights, Q4_1 and Q8_0, 2 cores): `gguf`'s own dequantization takes 0.65 s, the torch
forms in `engine.loading.dequantize` 0.3 s (the floor, writing 538 MB of fresh pages, is 0.15 s).

Rows of q and k are put in our order (`engine/loading/gguf_model.py`). Weights of norms need no change: llama.cpp's converter adds
what a family's checkpoints leave out of them.
"""

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.source import ModelError
from configs.model.stored_tensor import StoredTensor
from engine.loading.dequantize import dequantize_into, to_q8_0
from engine.loading.gguf_model import GgufModel
from engine.loading.reader import Assemble, Loaded_co, in_fp32
from engine.loading.stored import GROUPED, GroupKind, StoredMatrix
from engine.models.family import Shape


def load_gguf(path: Path, config: ModelConfig, assemble: Assemble[Loaded_co]) -> Loaded_co:
    """What `assemble` makes of the tensors of the GGUF file at `path`, and of the further parts of a split one.

    Raises:
        ModelError: tensors are missing, unexpected, cut off, or of another shape or type than described.
    """
    return assemble(_Gguf(GgufModel(path, config), config), config)


class _Gguf:
    """A `TensorReader` over the mapped file, or the parts that it is split into, under Hugging Face names."""

    def __init__(self, model: GgufModel, config: ModelConfig) -> None:
        self._model, self._tensors, factors = model, model.tensors, model.rope_factors
        stored = [*self._tensors.values(), *([factors] if factors else [])]
        self._files = {path: _mapped(path) for path in {tensor.path for tensor in stored}}
        self.rope_factors = self._rope_factors(factors, config.rotated // 2)
        self.shapes: Mapping[str, Shape] = {name: tensor.shape for name, tensor in self._tensors.items()}

    def blocks(self, name: str) -> StoredMatrix | None:
        return self._model.blocks(name)

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
        if tensor.kind != "F32" or name in self._model.heads:
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
        heads = self._model.heads.get(name)
        return rows if not heads else rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

    def _bytes(self, tensor: StoredTensor) -> Tensor:
        return torch.frombuffer(self._files[tensor.path], dtype=torch.uint8, count=tensor.size, offset=tensor.offset)

    def _dequantize(self, tensor: StoredTensor, stored: Tensor, out: Tensor) -> None:
        dequantize_into(stored.reshape(-1), GGMLQuantizationType[tensor.kind], out)

    def _rope_factors(self, tensor: StoredTensor | None, wanted: int) -> Tensor | None:
        if tensor is None:
            return None
        if prod(tensor.shape) != wanted:
            raise ModelError(f"{tensor.path.name}: {tensor.name} has {prod(tensor.shape)} values, not {wanted}.")
        out = torch.empty(wanted)
        self._dequantize(tensor, self._bytes(tensor), out)
        return out


def _mapped(path: Path) -> mmap.mmap:
    """A file in memory: a private, writable mapping, since torch warns about read-only memory. Nothing writes to it."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
