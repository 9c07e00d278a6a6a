"""Header of one GGUF file (versions 2 and 3): metadata and tensor infos, without reading or copying tensor data.

`gguf.GGUFReader` builds several numpy arrays for every vocabulary entry and needs 3 s for 49,152 tokens; a server that
wants to be ready within 2 s cannot pay that, least of all twice (engine and HTTP process). This reader takes a quarter of a
microsecond for each, and decodes texts when they are asked for, which an engine does for a few.

Every count and length in the file is compared with the bytes that are left before anything is allocated or looped over,
so a damaged file is refused at once.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

from configs.model.source import ModelError

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
# Of all arrays: a vocabulary of 260,000 tokens has a million. As Python's objects they take 30 times as much.
_MAX_ITEMS = 2**23
_SHOWN = 80  # characters of a name that an error repeats
_MAX_NESTING = 4  # arrays of arrays; no known file has any

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class GgufTexts(Sequence[str]):
    """The strings of an array, each decoded when it is asked for; what is not UTF-8 becomes U+FFFD.

    Args:
        raw: their bytes, as they stand in the file.
    """

    __hash__ = None  # type: ignore[assignment]  # as of a list

    def __init__(self, raw: list[bytes]) -> None:
        self.raw = raw

    def __len__(self) -> int:
        return len(self.raw)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "GgufTexts": ...
    def __getitem__(self, index: int | slice) -> "str | GgufTexts":
        if isinstance(index, slice):
            return GgufTexts(self.raw[index])
        return self.raw[index].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (raw.decode("utf-8", "replace") for raw in self.raw)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | GgufTexts) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self[:_SHOWN]))


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    `path` is of the file, `shape` is in row-major order (rows first; the file stores the reverse), `ggml_type` the number of
    the storage type (`gguf.GGMLQuantizationType`), `offset` the absolute position in the file, in bytes.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself, or all files of a split model, of which `path` is the first.

    Arrays of the metadata are lists, those of strings `GgufTexts`.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_gguf_file(path: Path, data: mmap.mmap) -> GgufHeader:
    """The header of the file at `path`, whose bytes are `data`: of a split model that of one part.

    Raises:
        ModelError: the file is of a version or byte order that is not read, truncated, or contradictory.
    """
    cursor = _Cursor(path, data, len(GGUF_MAGIC))
    version = cursor.u32()
    if version not in _VERSIONS:
        big_endian = version & 0xFFFF == 0
        kind = "big-endian" if big_endian else f"version {version}"
        raise ModelError(f"{path} is a {kind} GGUF file; little-endian files of version 2 or 3 can be read.")
    tensor_count, metadata_count = cursor.u64(), cursor.u64()
    metadata: dict[str, Any] = {}
    cursor.require(metadata_count, 8 + 4 + 1, "metadata entries")
    for _ in range(metadata_count):
        key = cursor.string()
        if key in metadata:
            raise cursor.damaged(f"the metadata key {key[:_SHOWN]} is listed twice")
        metadata[key] = cursor.value(cursor.u32())
    cursor.require(tensor_count, 8 + 4 + 8 + 4 + 8, "tensors")
    infos = [cursor.tensor() for _ in range(tensor_count)]
    return GgufHeader(path=path, metadata=metadata, tensors=_place(cursor, infos, metadata))


def _place(cursor: "_Cursor", infos: list[TensorInfo], metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    """Make offsets absolute: they count from the first multiple of the alignment after the header."""
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.damaged(f"general.alignment is {alignment!r}, not a power of two")
    start = -(-cursor.position // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.damaged(f"tensor {info.name[:_SHOWN]} is listed twice")
        if start + info.offset >= cursor.size:
            raise cursor.damaged(f"tensor {info.name} lies beyond the end of the file")
        tensors[info.name] = replace(info, offset=start + info.offset)
    return tensors


class _Cursor:
    """A position in the mapped file that never passes its end."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self._path = path
        self._data = data
        self.position = position
        self.size = len(data)
        self._depth = 0
        self._items = 0

    def damaged(self, what: str) -> ModelError:
        return ModelError(f"{self._path} is damaged: {what}; download it again.")

    def require(self, count: int, bytes_each: int, what: str) -> None:
        """Refuse `count` items of at least `bytes_each` bytes if the rest of the file cannot hold them."""
        if count * bytes_each > self.size - self.position:
            raise self.damaged(f"{count} {what} announced at byte {self.position} of {self.size}")

    def u32(self) -> int:
        return int(self._unpack(_U32))

    def u64(self) -> int:
        return int(self._unpack(_U64))

    def string(self) -> str:
        length = self.u64()
        self.require(length, 1, "characters")
        start = self.position
        self.position = start + length
        return self._data[start : start + length].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._unpack(struct.Struct("<" + _SCALARS[kind]))
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        raise self.damaged(f"unknown value type {kind} at byte {self.position}")

    def tensor(self) -> TensorInfo:
        name = self.string()
        dimensions = self.u32()
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self.damaged(f"tensor {name[:_SHOWN]} has {dimensions} dimensions")
        shape = tuple(self.u64() for _ in range(dimensions))[::-1]
        if 0 in shape:
            raise self.damaged(f"tensor {name[:_SHOWN]} is empty: its shape is {shape}")
        return TensorInfo(path=self._path, name=name, shape=shape, ggml_type=self.u32(), offset=self.u64())

    def _unpack(self, layout: struct.Struct) -> Any:
        self.require(1, layout.size, "values")
        (value,) = layout.unpack_from(self._data, self.position)
        self.position += layout.size
        return value

    def _array(self) -> "list[Any] | GgufTexts":
        kind, count = self.u32(), self.u64()
        if kind in _SCALARS:
            layout = "<%d" + _SCALARS[kind]
            self._require_items(count, struct.calcsize(layout % 1), "values")
            values = list(struct.unpack_from(layout % count, self._data, self.position))
            self.position += struct.calcsize(layout % count)
            return values
        if kind == _STRING:
            self._require_items(count, 8, "strings")
            return self._strings(count)
        self._depth += 1
        if kind != _ARRAY or self._depth > _MAX_NESTING:
            raise self.damaged(f"unknown array type {kind} at byte {self.position}")
        self._require_items(count, 12, "arrays")
        nested = [self._array() for _ in range(count)]
        self._depth -= 1
        return nested

    def _require_items(self, count: int, bytes_each: int, what: str) -> None:
        """`require` for the entries of an array, of which there are not too many in the whole file either."""
        self.require(count, bytes_each, what)
        self._items += count
        if self._items > _MAX_ITEMS:
            raise self.damaged(f"{count} {what} at byte {self.position} make more than {_MAX_ITEMS} entries of arrays")

    def _strings(self, count: int) -> GgufTexts:
        # The hot loop of the file (vocabulary and merges): locals instead of methods make it four times as fast.
        data, size, position = self._data, self.size, self.position
        length_at: Callable[..., tuple[Any, ...]] = _U64.unpack_from
        strings = []
        for _ in range(count):
            if position + 8 > size:
                raise self.damaged("a list of strings is cut off")
            start = position + 8
            position = start + length_at(data, position)[0]
            if position > size:
                raise self.damaged("a list of strings is cut off")
            strings.append(data[start:position])
        self.position = position
        return GgufTexts(strings)
