"""The host's memory below the device: copies of blocks in one slab, in runs of neighbours."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.kv_store.host_memory import pin, reserve, unpin
from engine.kv_store.row_copy import RowCopy, RowPairs
from engine.kv_store.store import BlockStore, Capabilities, Lent, Rows, StoreLost, StoreRefused
from scheduler.kv.free_extents import FreeExtents
from scheduler.types.block_hash import BlockKey


@dataclass(slots=True, eq=False)
class _Entry:
    """A content that is there, or that was dropped while lent and keeps its slot until the loan ends."""

    slot: int
    token_ids: tuple[int, ...]
    lent: int = 0  # times at this moment
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Reservation:
    """Rows of the slab to write contents to, inside the `with` that gave them.

    Attributes:
        block_keys: of the contents asked for, those that are not there yet and that there is room for, in order, each once.
        rows: of the slab, one for each.
        arrived: to be set for each one whose row was filled. Those are there when the `with` ends; none is if an exception ends it.
    """

    block_keys: list[BlockKey]
    rows: Rows
    arrived: list[bool]


class HostStore(BlockStore):
    """Blocks in memory, under the contract of `BlockStore`.

    The contents of one `put` get neighbouring slots in order, as far as free slots have neighbours, so that device and slab
    exchange them in few copies (FastSwitch, arXiv 2411.18424, section 3.1).

    A slot is free, or holds a content that is there, or is away: being written, or dropped while somebody reads it. The lock guards
    these books and is never held while bytes are copied: a content enters the books when its bytes have arrived, and what is
    being read is counted as lent, which keeps its slot from being reused even if it is dropped meanwhile.

    `put` keeps no block for which no slot is free; that happens only while dropped ones are still being read.

    Args:
        blocks: slots, at least 1.
        block_bytes: bytes of a block, at least 1.
        pinned: take the memory now and pin it, for a GPU's copy engines. Otherwise it is taken as slots are first written.

    Attributes:
        blocks_copied: blocks that `put` and `get` have copied so far.
        save_copies: ranges of memory that `put` has copied.
        load_copies: the same for `get`.

    Raises:
        StoreRefused: the memory cannot be allocated, or cannot be pinned.
    """

    capabilities = Capabilities(contiguous_rows=True, device_visible=True)

    def __init__(self, blocks: int, block_bytes: int, *, pinned: bool = False) -> None:
        self.blocks_copied = self.save_copies = self.load_copies = 0
        self._blocks = blocks
        self._block_bytes = block_bytes
        self._slab = _slab(blocks, block_bytes, pinned=pinned)
        self._pinned = pinned
        self._copy = RowCopy(self._slab)
        self._lock = threading.Lock()
        self._entries: dict[bytes, _Entry] = {}
        self._free = FreeExtents(blocks)
        self._free.add(0, blocks)
        self._away: set[int] = set()
        self._lost = ""

    @property
    def copies(self) -> int:
        """Copies both ways: each carried `blocks_copied / copies` blocks on average."""
        return self.save_copies + self.load_copies

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Copy these blocks into the slab; returns the bytes that each takes, 0 if it was not kept."""
        row_of: dict[bytes, int] = {}
        for block_key, row in zip(block_keys, rows.ids, strict=True):
            row_of.setdefault(block_key.hash, row)
        with self.fill(block_keys) as reserved:
            pairs = [
                (row_of[block_key.hash], slot)
                for block_key, slot in zip(reserved.block_keys, reserved.rows.ids, strict=True)
            ]
            copies = self._copied(rows, pairs, self._copy.to_slab)
            reserved.arrived[:] = [True] * len(pairs)
        with self._lock:
            self.save_copies += copies
            return [self._block_bytes if self._entry(block_key) else 0 for block_key in block_keys]

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Copy these contents out of the slab; False where one is not there."""
        with self._lending(block_keys) as entries:
            pairs = [(entry.slot, row) for entry, row in zip(entries, rows.ids, strict=True) if entry]
            copies = self._copied(rows, pairs, self._copy.from_slab)
        with self._lock:
            self.load_copies += copies
        return [entry is not None for entry in entries]

    @contextmanager
    def lend(self, block_keys: Sequence[BlockKey]) -> Iterator[Lent]:
        """Rows of the slab, for a lower store to write without another copy."""
        with self._lending(block_keys) as entries:
            there = [(block_key, entry.slot) for block_key, entry in zip(block_keys, entries, strict=True) if entry]
            yield Lent([block_key for block_key, _ in there], Rows(self._slab, [slot for _, slot in there]))

    @contextmanager
    def fill(self, block_keys: Sequence[BlockKey]) -> Iterator[Reservation]:
        """Slots for those of these contents that are not there yet, to be written without another copy.

        Raises:
            StoreLost: as from `put`.
        """
        reserved = self._reserve(block_keys)
        try:
            yield reserved
        except BaseException:
            reserved.arrived[:] = [False] * len(reserved.block_keys)
            raise
        finally:
            with self._lock:
                self._publish(reserved)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forget these contents; unknown ones are ignored."""
        with self._lock:
            entries = [entry for key in keys if (entry := self._entries.pop(key, None))]
            for entry in entries:
                entry.dropped = True
            self._away.update(entry.slot for entry in entries if entry.lent)
            self._free.add_all(entry.slot for entry in entries if not entry.lent)

    def check_integrity(self) -> None:
        """Compare the books with each other.

        Raises:
            AssertionError: naming the first contradiction.
        """
        with self._lock:
            self._free.check_integrity()
            held = [entry.slot for entry in self._entries.values()]
            slots = {*held, *self._away, *self._free}
            counts = f"{len(held)} held, {len(self._away)} away, {len(self._free)} free"
            assert len(held) + len(self._away) + len(self._free) == self._blocks, f"{counts} of {self._blocks} slots"
            assert slots == set(range(self._blocks)), f"slots with two owners: {counts}"
            assert not any(entry.dropped for entry in self._entries.values()), "a dropped content is there"

    def close(self) -> None:
        """Give the memory back: what is lent as soon as the loan ends, but pinned memory at once, so end all calls first.

        Later calls raise StoreLost.
        """
        self.drop(list(self._entries))
        with self._lock:
            if self._pinned and not self._lost:
                unpin(self._slab)
            self._lost = self._lost or "the host store is closed"
            self._slab = self._slab[:0].clone()
            self._copy = RowCopy(self._slab)

    @contextmanager
    def _lending(self, block_keys: Sequence[BlockKey]) -> Iterator[list[_Entry | None]]:
        """The entries of these contents, None where one is not there; their slots keep their bytes meanwhile."""
        with self._lock:
            self._check_open()
            entries = [self._entry(block_key) for block_key in block_keys]
            for entry in entries:
                if entry:
                    entry.lent += 1
        try:
            yield entries
        finally:
            with self._lock:
                self._take_back(entry for entry in entries if entry)

    def _take_back(self, entries: Iterable[_Entry]) -> None:
        freed = []
        for entry in entries:
            entry.lent -= 1
            if entry.dropped and not entry.lent:
                freed.append(entry.slot)
        self._away.difference_update(freed)
        self._free.add_all(freed)

    def _reserve(self, block_keys: Sequence[BlockKey]) -> Reservation:
        with self._lock:
            self._check_open()
            absent: dict[bytes, BlockKey] = {}
            for block_key in block_keys:
                if block_key.hash not in self._entries:
                    absent.setdefault(block_key.hash, block_key)
            slots = self._free.take_any(len(absent))
            self._away.update(slots)
            return Reservation(list(absent.values())[: len(slots)], Rows(self._slab, slots), [False] * len(slots))

    def _publish(self, reserved: Reservation) -> None:
        unused = []
        for block_key, slot, arrived in zip(reserved.block_keys, reserved.rows.ids, reserved.arrived, strict=True):
            if arrived and block_key.hash not in self._entries:
                self._entries[block_key.hash] = _Entry(slot, block_key.token_ids)
            else:
                unused.append(slot)
        self._away.difference_update(reserved.rows.ids)
        self._free.add_all(unused)

    def _entry(self, block_key: BlockKey) -> _Entry | None:
        entry = self._entries.get(block_key.hash)
        return entry if entry and entry.token_ids == block_key.token_ids else None

    def _copied(self, rows: Rows, pairs: RowPairs, copy: Callable[[Tensor, RowPairs], int]) -> int:
        """Copy these and count them; returns the copies it took. After an error of the GPU all later copies would fail, too."""
        try:
            copies = copy(torch.as_tensor(rows.pool), pairs)
        except RuntimeError as error:
            self._lost = f"copying between GPU and host failed: {error}"
            raise StoreLost(self._lost) from error
        with self._lock:
            self.blocks_copied += len(pairs)
        return copies

    def _check_open(self) -> None:
        if self._lost:
            raise StoreLost(self._lost)


def _slab(blocks: int, block_bytes: int, *, pinned: bool) -> Tensor:
    size = blocks * block_bytes
    if blocks < 1 or block_bytes < 1:
        raise StoreRefused(
            f"a host store needs room: {blocks} blocks of {block_bytes} bytes are none; raise --kv-host-gib"
        )
    try:
        slab = reserve(size)
        if pinned:
            pin(slab)
    except (OSError, RuntimeError) as error:
        how = "pinned" if pinned else "reserved"
        raise StoreRefused(
            f"{size / 2**30:.2f} GiB of host memory cannot be {how} ({error}); lower --kv-host-gib"
        ) from error
    return slab.view(blocks, block_bytes)
