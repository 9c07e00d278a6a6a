"""What the tests of the disk store share: blocks that follow from their number, a codec, and a file system that fails on demand."""

import os
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.filesystem import Filesystem
from engine.kv_store.disk.record import PAGE, size_of
from engine.kv_store.store import Rows
from scheduler.types.block_hash import BlockKey

SIZE = 2 * PAGE  # bytes of a block, unless a test asks for another size
SLOT = size_of(SIZE)


def block_key(number: int) -> BlockKey:
    return BlockKey(b"key" + number.to_bytes(13, "little"), tuple(range(number, number + 16)))


def number_of(name: BlockKey) -> int:
    return int.from_bytes(name.hash[3:], "little")


def content(number: int, size: int) -> np.ndarray:
    """uint8 [size]: every third block can be encoded shorter, the others cannot."""
    bytes_ = np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)
    return bytes_ & 3 if number % 3 == 0 else bytes_


def rows(blocks: int, size: int, *, aligned: bool = True) -> Rows:
    """Rows of zeros; on pages of their own if that is asked for and the size allows it."""
    memory = np.zeros(blocks * size + 8192, np.uint8)
    start = -memory.ctypes.data % 4096 + (0 if aligned else 64)
    return Rows(torch.from_numpy(memory[start : start + blocks * size].reshape(blocks, size)), range(blocks))


def put(store: DiskStore, numbers: Sequence[int], size: int) -> list[int]:
    source = rows(len(numbers), size)
    for row, number in enumerate(numbers):
        source.pool[row] = torch.from_numpy(content(number, size))
    return store.put([block_key(number) for number in numbers], source)


def get(store: DiskStore, numbers: Sequence[int], size: int) -> list[bool]:
    """Which blocks came; whatever comes must be the block's content."""
    target = rows(len(numbers), size)
    came = store.get([block_key(number) for number in numbers], target)
    for row, number in enumerate(numbers):
        assert not came[row] or np.array_equal(target.pool[row].numpy(), content(number, size)), f"wrong block {number}"
    return came


class Shrink:
    """Lossless, by zlib."""

    name = "shrink"

    def encode(self, block: np.ndarray) -> bytes:
        return zlib.compress(block, 1)

    def decode(self, data: memoryview, out: np.ndarray) -> None:
        try:
            plain = zlib.decompress(data)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(plain) != len(out):
            raise ValueError(f"{len(plain)} bytes")
        out[:] = np.frombuffer(plain, np.uint8)


@dataclass
class Faulty(Filesystem):
    """Fails, or does less than it was asked to, when a queue says so: each request takes the next entry; None is no fault.

    Attributes:
        read_faults: an errno, or the bytes of a short read as a negative number.
        write_faults: the same.
        refuse: errno of each call, by its method's name.
        delay: seconds that a request takes; half as long if it fails.
        under_way: requests that have begun and not ended yet, by offset.
    """

    read_faults: list[int | None] = field(default_factory=list)
    write_faults: list[int | None] = field(default_factory=list)
    refuse: dict[str, int] = field(default_factory=dict)
    delay: float = 0.0
    under_way: list[int] = field(default_factory=list)

    def read(self, file, buffers, offset):
        return self._request("read", self.read_faults, file, buffers, offset)

    def write(self, file, buffers, offset):
        return self._request("write", self.write_faults, file, buffers, offset)

    def open(self, path):
        return self._call("open", path)

    def lock(self, path):
        return self._call("lock", path)

    def claim_folder(self, path):
        return self._call("claim_folder", path)

    def punch(self, file, offset, length):
        return "punch" not in self.refuse and super().punch(file, offset, length)

    def _call(self, name, *arguments):
        if name in self.refuse:
            raise OSError(self.refuse[name], os.strerror(self.refuse[name]))
        return getattr(super(), name)(*arguments)

    def _request(self, name, faults, file, buffers, offset):
        fault = faults.pop(0) if faults else None
        if fault is not None and fault > 0:
            time.sleep(self.delay / 2)
            raise OSError(fault, os.strerror(fault))
        if fault is not None:
            buffers = shortened(buffers, -fault)
        self.under_way.append(offset)  # one step, so that threads need no lock
        try:
            time.sleep(self.delay)
            return getattr(super(), name)(file, buffers, offset) if buffers else 0
        finally:
            self.under_way.remove(offset)


def shortened(buffers: Sequence[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes."""
    kept = []
    for buffer in buffers:
        kept.append(buffer[:length])
        length -= len(kept[-1])
    return [buffer for buffer in kept if len(buffer)]


def numbers(store: DiskStore) -> list[int]:
    return [number_of(kept.block_key) for kept in store.kept()]


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("kv/kv-*/*.blocks"))


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))
