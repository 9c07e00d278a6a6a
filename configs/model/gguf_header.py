"""The header of a GGUF model: of its file, or of all files that it is split into, as one.

`llama-gguf-split` writes all metadata into the first part, and into each its number (`split.no`, from 0), how many parts there
are (`split.count`) and how many tensors they have together (`split.tensors.count`). Parts are found by their names. One that is
missing, is another one than its name says, or has what another has too, is refused before anything is made of any of them.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.model.gguf_file import GGUF_MAGIC, GgufHeader, TensorInfo, read_gguf_file
from configs.model.gguf_parts import PartName
from configs.model.source import ModelError

__all__ = ["GgufHeader", "TensorInfo", "keeping_gguf_headers", "read_gguf_header"]

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_NAMED = 3  # missing parts that a refusal names

_Key = tuple[Path, int, int, int]  # a file's place, number, size and time of change
_kept: list[dict[_Key, GgufHeader]] = []  # by whoever has headers kept


@contextmanager
def keeping_gguf_headers() -> Iterator[None]:
    """Meanwhile each file's header is parsed once, whoever reads it. Then it is forgotten: a vocabulary is large as objects."""
    _kept.append({})
    try:
        yield
    finally:
        _kept.pop()


def read_gguf_header(path: Path) -> GgufHeader:
    """Read metadata and tensor infos of the GGUF file at `path`, or of all parts of a split model of which it is one.

    What is returned may be others' too: it is not to be changed.

    Raises:
        ModelError: the file is not GGUF, of a version or byte order that is not read, truncated, or contradictory; of a split
            model likewise for each part, or the parts do not make one model.
    """
    header = _read(path)
    count = header.metadata.get(_COUNT, 0)
    return _whole(path, header) if isinstance(count, int) and count > 1 else header


def _read(path: Path) -> GgufHeader:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
            known = _kept[-1] if _kept else {}
            if key not in known:
                if file.read(4) != GGUF_MAGIC:
                    raise ModelError(f"{path} is not a GGUF file.")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    known[key] = read_gguf_file(path, data)
            return known[key]
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error


def _whole(path: Path, header: GgufHeader) -> GgufHeader:
    """The header of the split model of which the file at `path` is a part."""
    name, count = PartName.of(path), header.metadata[_COUNT]
    if name is None or name.count != count:
        raise ModelError(
            f"{path} is one of {count} parts of a split GGUF model, which are found by names that end in "
            f"-00001-of-{count:05d}.gguf and so on: give them back the names that they had."
        )
    places = [path.with_name(name.file(number)) for number in range(1, count + 1)]
    _refuse_missing(path, places)
    parts = [_read(place) for place in places]
    for number, part in enumerate(parts):
        _refuse_other(part, number, parts[0].metadata)
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        for info in part.tensors.values():
            if (first := tensors.setdefault(info.name, info)) is not info:
                raise ModelError(
                    f"{first.path.name} and {part.path.name} both have the tensor {info.name}: they are not of one "
                    "split model; download the parts again."
                )
    if len(tensors) != (announced := parts[0].metadata.get(_TENSORS, len(tensors))):
        raise ModelError(
            f"the {count} parts of {name.stem} have {len(tensors)} tensors, not the {announced} that {places[0].name} "
            "announces: they are not of one split model; download the parts again."
        )
    return GgufHeader(path=places[0], metadata=parts[0].metadata, tensors=tensors)


def _refuse_missing(path: Path, places: list[Path]) -> None:
    missing = [place.name for place in places if not place.is_file()]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelError(
            f"{path.name} is one of {len(places)} parts of a split GGUF model, of which {', '.join(missing[:_NAMED])}{more} "
            f"cannot be found in {path.parent}: put all parts into one folder."
        )


def _refuse_other(part: GgufHeader, number: int, first: dict[str, Any]) -> None:
    """Refuse a part that is not the one its name says, or says of the model what its first part says otherwise."""
    here, count = part.metadata.get(_NUMBER), part.metadata.get(_COUNT)
    if (here, count) != (number, first[_COUNT]):
        said = "is no part" if count is None else f"says that it is part {_from_one(here)} of {count}"
        raise ModelError(
            f"{part.path} {said} of a split GGUF model, not part {number + 1} of {first[_COUNT]} as its name says: parts are "
            "mixed up; download them again."
        )
    for key, value in part.metadata.items():
        if key != _NUMBER and value != first.get(key, value):
            raise ModelError(
                f"{part.path.name} has another {key} than the first part: they are not of one split model; download the parts "
                "again."
            )


def _from_one(number: object) -> object:
    return number + 1 if isinstance(number, int) else number
