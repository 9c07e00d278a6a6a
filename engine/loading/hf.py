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
from configs.model.fields import read_json
from configs.model.source import ModelError
from engine.loading.reader import Assemble, Loaded_co
from engine.loading.staging import copy_through
from engine.models.family import Shape
from engine.models.layout import check_shapes, norm_names
from engine.models.registry import family_of
from kernels.cpu.packing import Kind

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
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
        self.shapes: Mapping[str, Shape] = {}
        self._files: dict[str, Any] = {}
        self._types: dict[str, str] = {}
        shapes: dict[str, Shape] = {}
        for path in _shards(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise ModelError(f"cannot read {path}: {error}; download it again.") from error
            for name in file.keys():  # noqa: SIM118 - safe_open is not a mapping
                if name.endswith(_DERIVED):
                    continue
                part = file.get_slice(name)
                self._files[name], self._types[name] = file, part.get_dtype()
                shapes[name] = tuple(part.get_shape())
        self.shapes = shapes
        for name, kind in self._types.items():
            if kind not in _FLOATS:
                raise ModelError(f"{folder}: {name} is stored as {kind}; known: {', '.join(sorted(_FLOATS))}.")

    rope_factors: Tensor | None = None  # derived from the description

    def stored(self, name: str) -> tuple[Kind, Tensor] | None:
        return None

    def read_into(self, name: str, out: Tensor) -> None:
        stored = self._files[name].get_tensor(name)
        if out.device.type == "cpu":
            out.copy_(stored)
        else:
            copy_through(stored, out)
        if name in self._norms:
            out += self._offset

    def whole(self, name: str) -> Tensor | None:
        if name in self._norms:
            return None
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor if tensor.dtype == torch.float32 else None


def _shards(folder: Path) -> list[Path]:
    """The files that hold tensors; if there is an index, it says which."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if not (folder / _INDEX).is_file():
        raise ModelError(
            f"{folder} holds neither {_SINGLE} nor {_INDEX}; convert the model to safetensors, "
            "or use --load-format dummy for random weights."
        )
    places = read_json(folder / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelError(f"{folder / _INDEX} has no weight_map from tensors to files.")
    names = sorted(set(places.values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder} lacks shards that its index names: {', '.join(missing[:4])}; download them again.")
    return [folder / name for name in names]
