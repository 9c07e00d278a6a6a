"""Headers of a folder's safetensors: which tensors there are and where, without reading any.

Whoever reads the tensors themselves opens the files with the safetensors package, which checks them in full; here only what is used
is checked. Format: https://github.com/huggingface/safetensors#format
"""

import json
import os
import struct
from pathlib import Path
from typing import Any

from configs.model.fields import read_json
from configs.model.source import ModelError
from configs.model.stored_tensor import StoredTensor

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LENGTH = struct.Struct("<Q")  # of the header, in bytes; it comes first
_MOST = 100_000_000  # bytes of a header that the safetensors package reads


def has_safetensors(folder: Path) -> bool:
    """Whether there are any; a folder for random weights needs none."""
    return (folder / _SINGLE).is_file() or (folder / _INDEX).is_file()


def shards(folder: Path) -> list[Path]:
    """The files that hold a model's tensors; if there is an index, it says which.

    Raises:
        ModelError: there are none, or not all that the index names.
    """
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


def read_safetensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of all shards of `folder`, by name. A tensor may be in several shards if it is the same in all.

    Raises:
        ModelError: a file is missing or damaged, or two shards hold different tensors of one name.
        OSError: a file cannot be read.
    """
    found: dict[str, StoredTensor] = {}
    for path in shards(folder):
        for tensor in _tensors(path):
            first = found.setdefault(tensor.name, tensor)
            if first is not tensor and not first.equals(tensor):
                raise ModelError(
                    f"{folder}: {first.path.name} and {path.name} hold different tensors {tensor.name}; "
                    "only one of them can be the model's."
                )
    return found


def _tensors(path: Path) -> list[StoredTensor]:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > min(_MOST, size - _LENGTH.size):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return [_tensor(path, name, entry, _LENGTH.size + length, size) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, struct.error) as error:
        raise ModelError(f"cannot read {path}: {str(error)[:200]}; download it again.") from error


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> StoredTensor:
    kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (type(begin) is type(end) is int and 0 <= begin <= end <= size - start):
        raise ValueError(f"{name} is at bytes {begin} to {end} of {size - start}")
    if not isinstance(kind, str) or any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"{name} has the type {kind!r} and the shape {shape!r}")
    return StoredTensor(name, path, kind, tuple(shape), start + begin, end - begin)
