"""The disk below the host: blocks that survive the process.

What belongs here: the index of what is kept, and the I/O of single blocks. Never: what to keep or evict (the scheduler's), what
a head looks like (`record`), which slot is free (`slots`), names of files (`folder`), system calls (`filesystem`).
"""

import errno
import mmap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from engine.kv_store.disk.codec import Bytes, Codec
from engine.kv_store.disk.filesystem import Filesystem
from engine.kv_store.disk.folder import Folder
from engine.kv_store.disk.record import (
    PAGE,
    Head,
    checksum,
    pack_ids,
    read_head,
    size_of,
    unpack_ids,
    whole_pages,
    write_head,
)
from engine.kv_store.disk.scan import scan
from engine.kv_store.disk.slots import Place, Slots
from engine.kv_store.store import BlockStore, Capabilities, Kept, Rows, StoreLost
from scheduler.types.block_hash import BlockKey

Outcome = TypeVar("Outcome")

_DEPTH = 4  # requests at once: most of the disk's rate (figures in `filesystem`) with few threads
_SEGMENT_BYTES = 2**28  # of a file, at least
_SEGMENTS = 64  # files, about: each takes a descriptor
_GIVE_BACK = 8  # slots whose pages a single put may give back, 0.25 ms each: a lowered limit is reached step by step


class _Record(NamedTuple):
    """A content that is there."""

    head: Head
    place: Place

    @property
    def size(self) -> int:
        return size_of(self.head.length)


class DiskStore(BlockStore):
    """Blocks in a folder, under the contract of `BlockStore`.

    A block is written with its head, in one request, to a free slot of a file; it enters the index when that has returned. Nothing
    is synced: after a crash or a loss of power, what did not reach the disk fails its checksum, at the next opening or at the first
    `get`, and is forgotten. For the same reason a slot's old head need not be cleared before the slot is written again.

    Every `get` compares key, token ids, the whole head and the checksum of the bytes. Damaged contents are forgotten and counted;
    a slot that the disk cannot read is not used again. The first failing write loses the store, and so does a call that finds files
    of the folder deleted, moved away or replaced.

    Memory besides what the caller passes: a slot for each request under way, and some 600 bytes for each block kept.

    Args:
        folder: created if missing. Held by one process at a time; other models' and other formats' blocks in it are left alone
            until they stand in the way of the limit, then those used longest ago go first.
        block_bytes: bytes of a block.
        fingerprint: of model and KV format (`engine.fingerprint`).
        limit_bytes: bytes on the disk. What an earlier process left beyond it is dropped, oldest first; a `put` beyond it keeps
            nothing.
        codecs: those whose blocks can be read; blocks of others are forgotten.
        filesystem: the seam for tests.
        depth: blocks that are read or written at once by all calls for several blocks together; calls for one block come on top.

    Attributes:
        codec: encodes new blocks; None: they are written as they are. Blocks that it does not make shorter are, too. May be set at
            any time, from any thread.
        damaged: contents forgotten because their bytes had changed or could not be read.
        bytes_written: heads and padding included.
        bytes_read: likewise.

    Raises:
        StoreRefused: another process holds the folder.
        StoreLost: the folder cannot be read or written.
    """

    capabilities = Capabilities(survives=True)

    def __init__(
        self,
        folder: Path,
        *,
        block_bytes: int,
        fingerprint: str,
        limit_bytes: int,
        codecs: Sequence[Codec] = (),
        filesystem: Filesystem | None = None,
        depth: int = _DEPTH,
    ) -> None:
        self.codec: Codec | None = None
        self.damaged = self.bytes_written = self.bytes_read = 0
        self._block_bytes, self._slot_bytes, self._limit = block_bytes, size_of(block_bytes), limit_bytes
        self._codecs = {codec.name: codec for codec in codecs}
        self._filesystem = filesystem or Filesystem()
        self._lock = threading.Lock()  # over index, books, counters and the opening of files; never over a block's I/O
        self._index: dict[bytes, _Record] = {}
        self._slots = Slots(max(_SEGMENT_BYTES, limit_bytes // _SEGMENTS) // self._slot_bytes or 1)
        self._busy: set[Place] = set()  # slots in use that the index does not know: being written or given back
        self._punches = True
        self._buffers: list[memoryview] = []
        self._calls = 0  # that use the files
        self._lost = ""
        self._threads = ThreadPoolExecutor(depth, thread_name_prefix="kv-disk")
        try:
            self._folder = Folder(folder, fingerprint, block_bytes, self._filesystem)
            try:
                self._read_folder()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise StoreLost(f"no KV blocks on disk in {folder}: {error}") from error
        self._first = 1 + max((record.head.sequence for record in self._index.values()), default=-1)
        self._sequence = count(self._first)

    @property
    def taken(self) -> int:
        """Bytes on the disk of the contents kept and of those being written."""
        return self._slots.taken

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Write these blocks. Returns the bytes that each takes; 0 also where the limit leaves no room."""
        return self._each(self._put, block_keys, rows)

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Read these blocks and verify each."""
        return self._each(self._get, block_keys, rows)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these. The disk changes only when a slot is used again: until then, another opening finds the content."""
        with self._lock:
            for key in keys:
                if (record := self._index.pop(key, None)) is not None:
                    self._slots.free(record.place)

    def expect_newest_first(self) -> None:
        """From now on sequence numbers fall, from one that is above all so far."""
        self._sequence = count(next(self._sequence) + self._limit // PAGE, -1)

    def kept(self) -> list[Kept]:
        """What an earlier process left, in the order it was written or said that it would write: other use does not survive."""
        with self._lock:
            old = [record for record in self._index.values() if record.head.sequence < self._first]
        return [Kept(BlockKey(record.head.key, unpack_ids(record.head.ids)), record.size) for record in old]

    def check(self) -> None:
        """See whether the folder is still the one that was opened."""
        with self._using_files():
            self._check_folder()

    def check_integrity(self) -> None:
        """Compare the index, the slots and the places that are busy.

        Raises:
            AssertionError: naming the first contradiction.
        """
        with self._lock:
            self._slots.check()
            places = {record.place: record.size for record in self._index.values()}
            assert len(places) == len(self._index), "two contents in one slot"
            assert not places.keys() & self._busy, "a slot is written while it is read"
            used = self._slots.used
            assert used.keys() == places.keys() | self._busy, f"{len(used)} used, {len(places)} known"
            assert all(used[place] == size for place, size in places.items()), "a size differs from the books'"
            assert all(key == record.head.key for key, record in self._index.items()), "a content under another's key"

    def close(self) -> None:
        """Give back threads and files. May be called again; no other call may be under way."""
        self._lost = self._lost or "closed"
        self._threads.shutdown()
        self._folder.close()

    # One block

    def _each(
        self, work: Callable[[BlockKey, Bytes], Outcome], block_keys: Sequence[BlockKey], rows: Rows
    ) -> list[Outcome]:
        pool = rows.array
        if pool.dtype != np.uint8 or pool.shape[1:] != (self._block_bytes,) or not pool.flags.c_contiguous:
            raise ValueError(f"rows are {pool.dtype} {pool.shape}; this store keeps uint8 [n, {self._block_bytes}]")
        pairs = list(zip(block_keys, (pool[row] for row in rows.ids), strict=True))
        with self._using_files():
            self._check_folder()
            if len(pairs) == 1:
                return [work(*pairs[0])]
            tasks = [self._threads.submit(work, block_key, row) for block_key, row in pairs]
            wait(tasks)  # all of them, also where one fails: the rows are the caller's again when this returns
            return [task.result() for task in tasks]

    @contextmanager
    def _using_files(self) -> Iterator[None]:
        """For each call. Once the store is lost, the last one closes the files: deleted ones take space while they are open."""
        with self._lock:
            self._check_alive()
            self._calls += 1
        try:
            yield
        finally:
            with self._lock:
                self._calls -= 1
                if self._lost and not self._calls:
                    self._folder.close()

    def _put(self, block_key: BlockKey, row: Bytes) -> int:
        self._check_alive()
        ids = pack_ids(block_key.token_ids)
        with self._lock:
            known = self._index.get(block_key.hash)
        if known is not None:
            return known.size if known.head.ids == ids else 0
        data, codec = self._encoded(row)
        head = Head(block_key.hash, ids, next(self._sequence), len(data), checksum(data), codec)
        try:
            place = self._write(head, data)
        except OSError as error:
            raise self._lose("cannot be written", error) from error
        return self._publish(_Record(head, place)) if place is not None else 0

    def _get(self, block_key: BlockKey, row: Bytes) -> bool:
        self._check_alive()
        with self._lock:
            record = self._index.get(block_key.hash)
        if record is None or record.head.ids != pack_ids(block_key.token_ids):
            return False
        try:
            whole = self._read(record, row)
        except OSError as error:
            if error.errno != errno.EIO:
                raise self._lose("cannot be read", error) from error
            self._forget(record, readable=False)
            return False
        if not whole:
            self._forget(record, readable=True)
        return whole

    def _forget(self, record: _Record, *, readable: bool) -> None:
        """Forget a damaged content, on the disk too, lest the next opening find its head and believe it."""
        with self._lock:
            if self._index.get(record.head.key) is not record:
                return  # dropped meanwhile, against the contract: the slot may be another's by now
            del self._index[record.head.key]
            self._busy.add(record.place)
            self.damaged += 1
        if readable:
            with self._buffer() as buffer, suppress(OSError):  # if the head stays, the content is found damaged again
                buffer[:PAGE] = bytes(PAGE)
                file = self._folder.file(record.place.segment)
                self._filesystem.write_all(file, [buffer[:PAGE]], record.place.slot * self._slot_bytes)
        with self._lock:
            self._busy.remove(record.place)
            (self._slots.free if readable else self._slots.retire)(record.place)

    def _encoded(self, row: Bytes) -> tuple[memoryview, str]:
        """A block's bytes as they go to the disk, and the name of the codec that encoded them; empty: none did."""
        if (codec := self.codec) is not None:
            data = memoryview(codec.encode(row)).cast("B")
            if whole_pages(len(data)) < whole_pages(self._block_bytes):
                self._codecs.setdefault(codec.name, codec)
                return data, codec.name
        return row.data, ""

    def _write(self, head: Head, data: memoryview) -> Place | None:
        """Write a block to a free slot, which stays busy; None if there is no room."""
        size = size_of(head.length)
        with self._buffer() as buffer:
            write_head(head, buffer[:PAGE])
            parts = [buffer[:PAGE], data]
            if not _in_pages(data):
                end = PAGE + len(data)
                buffer[PAGE:end], buffer[end:size] = data, bytes(size - end)
                parts = [buffer[:size]]
            with self._lock:
                if self._slots.taken + size > self._limit:
                    return None
                place, left = self._slots.take(size)
                self._busy.add(place)
                file = self._folder.file(place.segment)
            self._give_back()
            start = place.slot * self._slot_bytes
            self._filesystem.write_all(file, parts, start)
        if left > size:
            self._filesystem.punch(file, start + size, left - size)
        return place

    def _publish(self, record: _Record) -> int:
        with self._lock:
            self.bytes_written += record.size
            self._busy.remove(record.place)
            if record.head.key in self._index:  # another thread was faster, against the contract
                self._slots.free(record.place)
            return self._index.setdefault(record.head.key, record).size

    def _read(self, record: _Record, row: Bytes) -> bool:
        """Fill the row. Returns whether all of it is what was written."""
        head, out = record.head, row.data
        file = self._folder.file(record.place.segment)
        with self._buffer() as buffer:
            parts, data = [buffer[:PAGE], out], out
            if head.codec or not _in_pages(out):
                parts, data = [buffer[: record.size]], buffer[PAGE : PAGE + head.length]
            read = self._filesystem.read(file, parts, record.place.slot * self._slot_bytes)
            with self._lock:
                self.bytes_read += read
            if read != record.size or read_head(buffer[:PAGE]) != head or checksum(data) != head.checksum:
                return False
            if head.codec:
                return self._decode(head.codec, data, row)
            if data is not out:
                out[:] = data
            return True

    def _decode(self, codec: str, data: memoryview, row: Bytes) -> bool:
        try:
            self._codecs[codec].decode(data, row)
        except ValueError:
            return False
        return True

    @contextmanager
    def _buffer(self) -> Iterator[memoryview]:
        """Page-aligned memory for one slot."""
        try:
            buffer = self._buffers.pop()
        except IndexError:
            buffer = memoryview(mmap.mmap(-1, self._slot_bytes))
        try:
            yield buffer
        finally:
            self._buffers.append(buffer)

    def _check_alive(self) -> None:
        if self._lost:
            raise StoreLost(self._lost)

    def _check_folder(self) -> None:
        """Writing to files that nobody will find again, or to another's folder, would look like a tier that works."""
        try:
            self._folder.check()
        except OSError as error:
            raise self._lose("cannot be reached", error) from error

    def _lose(self, what: str, error: OSError) -> StoreLost:
        self._lost = self._lost or f"the KV blocks on disk {what}: {error.strerror or error}"
        return StoreLost(self._lost)

    # The disk as a whole

    def _read_folder(self) -> None:
        """Fill the index and the books from what is there, within the limit."""
        found = list(scan(self._folder, self._filesystem, self._slot_bytes, self._threads))
        good = [_Record(head, place) for place, head, _ in found if head is not None and self._fits(head)]
        wanted = {record.place.segment for record in good}
        for segment in {place.segment for place, _, _ in found} - wanted:
            self._folder.remove(segment)
        sizes = {record.place: record.size for record in good}
        for place, _, readable in found:
            if place.segment in wanted:
                self._slots.add(place, sizes.get(place, self._slot_bytes))
                if place not in sizes:  # how many of its pages were written is unknown: all of them are counted
                    (self._slots.free if readable else self._slots.retire)(place)
        for record in sorted(good, key=lambda record: record.head.sequence):
            if (older := self._index.pop(record.head.key, None)) is not None:
                self._slots.free(older.place)
            self._index[record.head.key] = record
        for key in list(self._index):
            if self._slots.taken <= self._limit:
                break
            self._slots.free(self._index.pop(key).place)

    def _fits(self, head: Head) -> bool:
        """Whether an undamaged head can be one of ours."""
        if head.codec:
            return head.codec in self._codecs and size_of(head.length) <= self._slot_bytes
        return head.length == self._block_bytes

    def _give_back(self) -> None:
        """Have the disk take back what stands in the way of the limit: other models' blocks, then pages of free slots."""
        for _ in range(_GIVE_BACK):
            with self._lock:
                others = self._folder.others
                if self._slots.taken + self._slots.spare + sum(other.size for other in others) <= self._limit:
                    return
                other = others.pop(0) if others else None
                free = self._slots.hollow() if other is None and self._punches else None
                if free is not None:
                    self._busy.add(free[0])
            if other is not None:
                with suppress(OSError):  # what is not ours to remove stays
                    self._folder.remove_other(other)
            elif free is None or not self._hollow(*free):
                return

    def _hollow(self, place: Place, size: int) -> bool:
        """Give back the pages of a free slot. Returns whether this system can."""
        file = self._folder.file(place.segment)
        self._punches = self._filesystem.punch(file, place.slot * self._slot_bytes, size)
        with self._lock:
            self._busy.remove(place)
            self._slots.free(place)
        return self._punches


def _in_pages(data: memoryview) -> bool:
    """Whether this is whole, aligned pages of memory, so that direct access needs no copy."""
    return len(data) % PAGE == 0 and np.frombuffer(data, np.uint8).ctypes.data % PAGE == 0
