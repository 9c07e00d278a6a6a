"""Weights of a Hugging Face folder: safetensors, one file or shards, memory-mapped.

fp32 matrices that the decoder uses as they are stay in the mapping, so that the page cache holds their only copy; fused or
half-precision ones are converted into fresh memory, and their source pages can be dropped at any time.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from configs.model.config import ModelConfig
from configs.model.safetensors_header import read_safetensors, shards
from configs.model.source import ModelError
from engine.loading.fused import unfused
from engine.loading.reader import Assemble, Loaded_co
from engine.loading.staging import copy_through
from engine.loading.stored import GroupKind, StoredMatrix
from engine.models.family import Shape
from engine.models.layout import check_shapes, norm_names
from engine.models.registry import family_of

_FLOATS = {"F32", "F16", "BF16", "F64"}
_DERIVED = ".rotary_emb.inv_freq"  # old checkpoints store what the config implies


def load_hf(folder: Path, config: ModelConfig, assemble: Assemble[Loaded_co]) -> Loaded_co:
    """What `assemble` makes of the safetensors of `folder`.

    Raises:
        ModelError: files or tensors are missing, unexpected, damaged, or of another shape or type than described.
    """
    with ExitStack() as stack:
        reader = _Safetensors(folder, config, stack)
        check_shapes(str(folder), reader.shapes, config)
        return assemble(reader, config)


class _Safetensors:
    """A `TensorReader` over the shards. Tensors keep their mapping alive after the files are closed."""

    def __init__(self, folder: Path, config: ModelConfig, stack: ExitStack) -> None:
        self._offset = family_of(config).norm_offset
        self._norms = norm_names(config) if self._offset else frozenset()
        tensors = {name: tensor for name, tensor in read_safetensors(folder).items() if not name.endswith(_DERIVED)}
        tensors = unfused(tensors, config, "hf")
        head, embedding = (family_of(config).tensor(role).hf for role in ("head", "embedding"))
        if config.tie_word_embeddings and head in tensors:
            tensors.setdefault(embedding, tensors[head])  # whichever of the two is there is both
        self._tensors = tensors
        self.shapes: Mapping[str, Shape] = {name: tensor.shape for name, tensor in tensors.items()}
        self._files = {path: stack.enter_context(_opened(path)) for path in shards(folder)}
        for name, tensor in tensors.items():
            if tensor.kind not in _FLOATS:
                raise ModelError(f"{folder}: {name} is stored as {tensor.kind}; known: {', '.join(sorted(_FLOATS))}.")

    rope_factors: Tensor | None = None  # derived from the description

    def blocks(self, name: str) -> StoredMatrix | None:
        return None

    def group_kind(self, name: str) -> GroupKind | None:
        return None

    def groups(self, name: str) -> Tensor:
        raise AssertionError(f"{name} has no groups")

    def read_into(self, name: str, out: Tensor) -> None:
        stored = self._stored(name)
        if out.device.type == "cpu":
            out.copy_(stored)
        else:
            copy_through(stored, out)
        if name in self._norms:
            out += self._offset

    def whole(self, name: str) -> Tensor | None:
        if name in self._norms:
            return None
        tensor = self._stored(name)
        return tensor if tensor.dtype == torch.float32 else None

    def forget(self, name: str) -> None:
        """Nothing: the mapping goes with the last tensor of its file."""

    def _stored(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        file, first = self._files[tensor.path], tensor.first_row
        stored: Tensor = (
            file.get_tensor(tensor.name)
            if first is None
            else file.get_slice(tensor.name)[first : first + tensor.shape[0]]
        )
        return stored


def _opened(path: Path) -> Any:
    """A file that the safetensors package has checked."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read {path}: {error}; download it again.") from error
