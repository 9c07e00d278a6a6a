"""Header of a GGUF file (versions 2 and 3): metadata and tensor infos, without reading or copying tensor data.

`gguf.GGUFReader` builds several numpy arrays for every vocabulary entry and needs 3 s for 49,152 tokens; a server that
wants to be ready within 5 s cannot pay that twice (engine and HTTP process). This reader takes about 50 ms.

Every count and length in the file is compared with the bytes that are left before anything is allocated or looped over,
so a damaged file is refused at once.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.model.source import ModelError

_MAGIC = b"GGUF"
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


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    `shape` is in row-major order (rows first; the file stores the reverse), `ggml_type` the number of the storage type
    (`gguf.GGMLQuantizationType`), `offset` the absolute position in the file, in bytes.
    """

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
    """What a GGUF file says about itself. Arrays of the metadata are lists."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]


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
    """Read metadata and tensor infos of the GGUF file at `path`. What is returned may be others' too: it is not to be changed.

    Raises:
        ModelError: the file is not GGUF, of a version or byte order that is not read, truncated, or contradictory.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
            known = _kept[-1] if _kept else {}
            if key not in known:
                if file.read(4) != _MAGIC:
                    raise ModelError(f"{path} is not a GGUF file.")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    known[key] = _parse(path, data)
            return known[key]
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}.") from error


def _parse(path: Path, data: mmap.mmap) -> GgufHeader:
    cursor = _Cursor(path, data, len(_MAGIC))
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
    parts = metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        raise ModelError(f"{path} is one part of a split GGUF model; join the parts with `llama-gguf-split --merge`.")
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
        tensors[info.name] = TensorInfo(info.name, info.shape, info.ggml_type, start + info.offset)
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
        return TensorInfo(name=name, shape=shape, ggml_type=self.u32(), offset=self.u64())

    def _unpack(self, layout: struct.Struct) -> Any:
        self.require(1, layout.size, "values")
        (value,) = layout.unpack_from(self._data, self.position)
        self.position += layout.size
        return value

    def _array(self) -> list[Any]:
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

    def _strings(self, count: int) -> list[str]:
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
            strings.append(data[start:position].decode("utf-8", "replace"))
        self.position = position
        return strings
