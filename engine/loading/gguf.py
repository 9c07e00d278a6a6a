"""Weights of a GGUF file, memory-mapped and dequantized to fp32.

Measured on the default model (134.5 M weights, Q4_1 and Q8_0, 2 cores): `gguf`'s own dequantization takes 0.65 s, the torch
forms in `engine.loading.dequantize` 0.3 s (the floor, writing 538 MB of fresh pages, is 0.15 s).

llama.cpp reorders the rows of q and k of some architectures so that the two halves of a rotary pair are side by side
(`Family.gguf_pairs_adjacent`); the decoder uses the half-split order, so they are put back. Weights of norms need no change:
llama.cpp's converter adds what a family's checkpoints leave out of them.
"""

import mmap
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.gguf_header import GgufHeader, TensorInfo, read_gguf_header
from configs.model.source import ModelError
from engine.loading.dequantize import SUPPORTED, dequantize_into
from engine.loading.reader import Assemble, Loaded_co, in_fp32
from engine.models.family import Shape
from engine.models.layout import check_shapes, gguf_names
from engine.models.registry import family_of
from kernels.cpu.packing import Kind

_ROPE_FACTORS = "rope_freqs.weight"
_GROUPED: dict[GGMLQuantizationType, Kind] = {
    GGMLQuantizationType.Q4_0: "Q4_0",
    GGMLQuantizationType.Q4_1: "Q4_1",
    GGMLQuantizationType.Q8_0: "Q8_0",
}


def load_gguf(path: Path, config: ModelConfig, assemble: Assemble[Loaded_co]) -> Loaded_co:
    """What `assemble` makes of the tensors of the GGUF file at `path`.

    Raises:
        ModelError: tensors are missing, unexpected, cut off, or of another shape or type than described.
    """
    header = read_gguf_header(path)
    reader = _Gguf(header, config)
    check_shapes(path.name, reader.shapes, config)
    return assemble(reader, config)


class _Gguf:
    """A `TensorReader` over the mapped file, under Hugging Face names."""

    def __init__(self, header: GgufHeader, config: ModelConfig) -> None:
        with header.path.open("rb") as file:
            # A private, writable mapping, since torch warns about read-only memory. Nothing writes to it.
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._path = header.path
        self._config = config
        names = gguf_names(config)  # an unknown tensor keeps its own name and is refused with the shapes
        self._infos = {names.get(name, name): info for name, info in header.tensors.items() if name != _ROPE_FACTORS}
        self._interleaved = _interleaved(config)
        self.shapes: Mapping[str, Shape] = {name: info.shape for name, info in self._infos.items()}
        self.rope_factors = self._rope_factors(header.tensors.get(_ROPE_FACTORS))
        self._refuse_overlaps(header.tensors.values())

    def stored(self, name: str) -> tuple[Kind, Tensor] | None:
        kind = _GROUPED.get(GGMLQuantizationType(self._infos[name].ggml_type))
        return kind and (kind, self._rows(name))

    def read_into(self, name: str, out: Tensor) -> None:
        with in_fp32(out) as values:
            dequantize_into(self._rows(name).reshape(-1), GGMLQuantizationType(self._infos[name].ggml_type), values)

    def whole(self, name: str) -> Tensor | None:
        info = self._infos[name]
        if info.ggml_type != GGMLQuantizationType.F32 or name in self._interleaved:
            return None
        return self._stored(info).view(torch.float32).view(info.shape)

    def _rows(self, name: str) -> Tensor:
        """The stored bytes, uint8 [rows, bytes of a row], rows in our order."""
        info = self._infos[name]
        stored = self._stored(info).view(info.shape[0], -1)
        heads = self._interleaved.get(name)
        if not heads:
            return stored
        return stored.view(heads, -1, 2, stored.shape[-1]).transpose(1, 2).reshape(stored.shape)

    def _rope_factors(self, info: TensorInfo | None) -> Tensor | None:
        if info is None:
            return None
        if info.elements != self._config.head_dim // 2:
            raise ModelError(
                f"{self._path.name}: {_ROPE_FACTORS} has {info.elements} values, not {self._config.head_dim // 2}."
            )
        out = torch.empty(info.elements)
        self._stored_bytes(info)
        dequantize_into(self._stored(info), GGMLQuantizationType(info.ggml_type), out)
        return out

    def _stored(self, info: TensorInfo) -> Tensor:
        return torch.frombuffer(self._data, dtype=torch.uint8, count=self._stored_bytes(info), offset=info.offset)

    def _refuse_overlaps(self, infos: Iterable[TensorInfo]) -> None:
        end, before = 0, ""
        for info in sorted(infos, key=lambda info: info.offset):
            if info.offset < end:
                raise ModelError(
                    f"{self._path.name} is damaged: {info.name} begins at byte {info.offset}, within {before}, which ends at {end}."
                )
            end, before = info.offset + self._stored_bytes(info), info.name

    def _stored_bytes(self, info: TensorInfo) -> int:
        """Size in the file, in bytes.

        Raises:
            ModelError: the type is not implemented, or the file is cut off.
        """
        names = {kind.value: kind.name for kind in GGMLQuantizationType}
        if info.ggml_type not in SUPPORTED:
            kind = names.get(info.ggml_type, f"type {info.ggml_type}")
            known = ", ".join(names[supported] for supported in sorted(SUPPORTED))
            raise ModelError(
                f"{self._path.name}: {info.name} is stored as {kind}, which is not implemented; known: {known}."
            )
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(info.ggml_type)]
        if info.shape[-1] % block:
            raise ModelError(
                f"{self._path.name}: rows of {info.name} are {info.shape[-1]} long, not a multiple of {block}."
            )
        stored = info.elements // block * size
        if info.offset + stored > len(self._data):
            raise ModelError(f"{self._path.name} is cut off within {info.name}; download it again.")
        return stored


def _interleaved(config: ModelConfig) -> dict[str, int]:
    """The tensors whose rows llama.cpp has reordered, with their numbers of heads."""
    family = family_of(config)
    if not family.gguf_pairs_adjacent:
        return {}
    heads = {"q": config.heads, "k": config.kv_heads}
    return {tensor.hf: heads[tensor.spec.role] for tensor in family.tensors(config) if tensor.spec.role in heads}
