"""The weights of all CPU engines of a server, once in the machine's memory: the first engine packs them there, the others map them.

The server makes the memory, empty (`engine/ipc/shared_memory.py`), and every engine inherits its descriptor. Whoever holds the
lock packs. What is complete is *sealed*: from then on the system lets nobody write to it. So half of a model is never taken for all
of it: an engine that dies while it packs leaves no seal, the system takes its lock back, and the next one starts from nothing. As
the server holds the memory, an engine that is started again finds the weights there.

Laid out as: the key's digest, the tensors, the structure that they are parts of (`engine/cpu/tensor_tree.py`), the length of that.
"""

import ctypes
import fcntl
import logging
import mmap
import os
import threading
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from engine.cpu.tensor_tree import Spot, decode, encode, map_tensors, tensor_at

T = TypeVar("T")
log = logging.getLogger("headrace.engine")

_LINE = 64  # bytes of a cache, on which tensors begin
_LENGTH = 8  # bytes at the end
_LOOK_SECONDS = 0.01
_STALLED_SECONDS = 30.0  # in which an engine that packs must have come further: a layer takes a second of a large model


class Placer(Protocol):
    """Moves the tensors of something, a matrix or a layer, to where the weights are to lie, and gives the same with those."""

    def __call__(self, value: T, /) -> T:
        """Place it; may be called from several threads."""


def in_place(value: T) -> T:
    """A `Placer` for an engine that has weights of its own: they stay where they are."""
    return value


class SharedWeights:
    """An engine's view of that memory.

    Args:
        descriptor: of memory that can be sealed; it stays the caller's.
        classes: the dataclasses that the weights are made of, no two of one name.
        stalled_seconds: after which an engine that does not go on packing is not waited for.
    """

    def __init__(
        self, descriptor: int, classes: Sequence[type] = (), stalled_seconds: float = _STALLED_SECONDS
    ) -> None:
        self._descriptor = descriptor
        self._classes = {each.__name__: each for each in classes}
        self._stalled_seconds = stalled_seconds

    def get(self, key: str, pack: Callable[[Placer], T]) -> T:
        """The weights, packed here unless they were packed before; the tensors may not be written to.

        Where they cannot be shared, this engine has its own, and the log says why.

        Args:
            key: names model and layout: the same for the same weights.
            pack: makes the weights, by way of the place that it is given.
        """
        digest = blake2b(key.encode()).digest()
        try:
            self._ensure_complete(digest, pack)
            found = _mapped(self._descriptor)
            if found[: len(digest)] == digest:
                weights: T = decode(_structure(found), self._classes, found)
                return weights
            why = "the model's files, or the kernels, have changed since the server started"
        except (TimeoutError, OSError) as error:
            why = str(error)
        log.warning("this engine holds weights of its own: %s", why)
        return pack(in_place)

    @property
    def _complete(self) -> bool:
        return bool(fcntl.fcntl(self._descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE)

    def _ensure_complete(self, digest: bytes, pack: Callable[[Placer], T]) -> None:
        """Pack, unless somebody else has done so or does.

        Raises:
            TimeoutError: who packs does not go on.
            OSError: there is not enough memory.
        """
        size, until = -1, 0.0
        while not self._complete:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # it is held
                if (now_size := os.fstat(self._descriptor).st_size) != size:
                    size, until = now_size, time.monotonic() + self._stalled_seconds
                if time.monotonic() >= until:
                    raise TimeoutError(f"another one has packed nothing for {self._stalled_seconds:g} s") from None
                time.sleep(_LOOK_SECONDS)
                continue
            try:
                if not self._complete:
                    self._pack(digest, pack)
            finally:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _pack(self, digest: bytes, pack: Callable[[Placer], T]) -> None:
        os.ftruncate(self._descriptor, 0)  # of what somebody has begun
        try:
            arena = _Arena(self._descriptor, digest)
            arena.finish(pack(arena.place))
        except BaseException:
            os.ftruncate(self._descriptor, 0)
            raise
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, seals)
        _give_back()


class _Arena:
    """The memory while it is filled, from several threads."""

    def __init__(self, descriptor: int, digest: bytes) -> None:
        self._descriptor = descriptor
        self._end = _write(descriptor, digest, 0)
        self._lock = threading.Lock()
        self._placed: dict[int, tuple[Tensor, Spot]] = {}  # by `id`, which a living tensor has for itself

    def place(self, value: T) -> T:
        """A `Placer`."""
        spots = dict[int, Spot]()

        def write(tensor: Tensor) -> Spot:
            if id(tensor) not in spots:  # what is one tensor stays one
                spots[id(tensor)] = self._spot(tensor)
            return spots[id(tensor)]

        written = map_tensors(value, write)
        memory = _mapped(self._descriptor)  # only now is all of it there
        there = {spot: tensor_at(memory, spot) for spot in spots.values()}
        self._placed.update((id(tensor), (tensor, spot)) for spot, tensor in there.items())
        placed: T = map_tensors(written, there.__getitem__, of=Spot)
        return placed

    def finish(self, weights: object) -> None:
        """Write the structure, and the tensors that were not placed before."""
        structure = encode(weights, self._spot)
        end = _write(self._descriptor, structure, self._end)
        _write(self._descriptor, len(structure).to_bytes(_LENGTH), end)

    def _spot(self, tensor: Tensor) -> Spot:
        if (placed := self._placed.get(id(tensor))) is not None:
            return placed[1]
        with self._lock:
            start = -(-self._end // _LINE) * _LINE
            self._end = start + tensor.nbytes
        _write(self._descriptor, memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy().data), start)
        return Spot.of(tensor, start)


def _mapped(descriptor: int) -> mmap.mmap:
    """All of it: a private, writable mapping, since torch warns about read-only memory. Nothing writes to it."""
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)


def _structure(memory: mmap.mmap) -> bytes:
    end = len(memory) - _LENGTH
    return memory[end - int.from_bytes(memory[end:]) : end]


def _give_back() -> None:
    """Have the allocator return what packing took to the system: glibc's keeps it, measured 49 MB of a 92 MB model."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(ctypes.c_size_t(0))


def _write(descriptor: int, data: "bytes | memoryview[int]", start: int) -> int:
    """Write all of it. Returns where it ends.

    Raises:
        OSError: there is not enough memory.
    """
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, start)
        left, start = left[written:], start + written
    return start
