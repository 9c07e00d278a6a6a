"""Which content lies in which slot of the shared memory, who reads and who writes it, and what goes when room is needed.

A slot is free, or belongs to a content that is there or on its way. What is there, what is evicted and what is still being read is
the business of a `TierIndex`; here are slots, leases, and who is told.

A lease ends with its connection. Slots that were being written then stay out of use until their writer has ended or has said that
none of its copies is under way: it may still be copying.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from engine.keeper.messages import KNOWN, NOT_THERE
from engine.keeper.records import NOBODY, Owner, Records
from engine.kv_store.disk.record import checksum
from scheduler.kv.eviction import Eviction
from scheduler.kv.free_extents import FreeExtents
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.types.block_hash import BlockKey

Tell = Callable[[BlockKey, int, Owner], None]


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@dataclass(slots=True, eq=False)
class Lease:
    """Slots that an engine reads, or writes.

    Attributes:
        owner: whose it is.
        block_keys: the contents.
        writes: whether they are being written.
    """

    owner: Owner
    block_keys: list[BlockKey]
    writes: bool


class SlabBooks:
    """The books of one slab.

    Args:
        records: of the slab; what they say is there enters the books if its bytes are those that were written.
        policy: decides which content is evicted first.
        tell: called with a content, the bytes it takes (0: it has gone) and who put it.
        alive: whether a process has not ended.
        clock: seconds, monotonic; for pins.

    Attributes:
        ids: most token ids of a content.
        damaged: contents that the records had, and whose bytes were others.
    """

    def __init__(
        self,
        records: Records,
        policy: Eviction,
        tell: Tell,
        *,
        alive: Callable[[int], bool] = is_alive,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        geometry = records.geometry
        self.ids = geometry.ids
        self.damaged = 0
        self._records = records
        self._bytes = geometry.block_bytes
        self._index = TierIndex("slab", geometry.slots * geometry.block_bytes, geometry.block_bytes, policy)
        self._tell = tell
        self._alive = alive
        self._clock = clock
        self._slots: dict[bytes, int] = {}
        self._free = FreeExtents(geometry.slots)
        self._leases: set[Lease] = set()
        self._abandoned: list[Lease] = []
        if records.found():
            self._recover()
        else:
            records.clear_all()
            self._free.add(0, geometry.slots)

    def __len__(self) -> int:
        return len(self._index)

    def contents(self) -> list[tuple[BlockKey, int]]:
        """What can be read now, least recently used first, with the bytes that each takes."""
        keys = [block_key for key in self._index.contents() if (block_key := self._index.key_of(key)) is not None]
        return [(block_key, self._bytes) for block_key in reversed(keys)]

    def finds(self, block_key: BlockKey) -> bool:
        """Whether the content can be read now."""
        return self._index.finds(block_key)

    def slot(self, block_key: BlockKey) -> int:
        """Where a content is, that is lent or being written."""
        return self._slots[block_key.hash]

    # --- leases ---

    def reserve(self, owner: Owner, block_keys: Sequence[BlockKey]) -> tuple[Lease, list[int]]:
        """Slots for those of these contents that are not there or on their way, neighbours where there are some.

        Returns:
            The lease, and a slot for each content, `KNOWN` if it is there, or `NOT_THERE`.
        """
        self._index.touch(list({block_key.hash: None for block_key in block_keys if self._index.finds(block_key)}))
        self._index.expire(self._clock())
        if self._abandoned:
            self._end_abandoned()
        absent = [block_key for block_key in block_keys if self._index.reserve(block_key)]
        self._free_dropped()
        slots = dict(zip((each.hash for each in absent), self._free.take_any(len(absent)), strict=True))
        self._slots.update(slots)
        for slot in slots.values():
            self._records.writing(slot, owner)
        lease = Lease(owner, absent, writes=True)
        self._leases.add(lease)
        given = [
            slots.pop(each.hash, NOT_THERE) for each in block_keys
        ]  # a content that is asked for twice has one slot
        return lease, [
            KNOWN if slot == NOT_THERE and self._index.finds(each) else slot
            for each, slot in zip(block_keys, given, strict=True)
        ]

    def commit(self, lease: Lease, checksums: Sequence[int | None]) -> None:
        """The slots of a lease are written; those without a checksum are not."""
        for block_key, of_bytes in reversed(
            list(zip(lease.block_keys, checksums, strict=True))
        ):  # the head is used last
            if of_bytes is not None:
                self._records.keep(self._slots[block_key.hash], block_key, of_bytes)
        self._leases.remove(lease)
        sizes = [0 if of_bytes is None else self._bytes for of_bytes in checksums]
        self._index.arrived([block_key.hash for block_key in lease.block_keys], sizes)
        self._free_dropped()
        for block_key in lease.block_keys:
            if self._index.finds(block_key):
                self._tell(block_key, self._bytes, lease.owner)

    def lend(self, owner: Owner, block_keys: Sequence[BlockKey]) -> tuple[Lease, list[int]]:
        """Keep those of these contents that are there where they are. Returns the lease, and a slot for each or `NOT_THERE`."""
        there = [block_key for block_key in dict.fromkeys(block_keys) if self._index.finds(block_key)]
        self._index.hold([block_key.hash for block_key in there])
        lease = Lease(owner, there, writes=False)
        self._leases.add(lease)
        found = {block_key: self._slots[block_key.hash] for block_key in there}
        return lease, [found.get(block_key, NOT_THERE) for block_key in block_keys]

    def give_back(self, lease: Lease) -> None:
        """What was lent has been read."""
        self._leases.remove(lease)
        keys = [block_key.hash for block_key in lease.block_keys]
        self._index.release(keys)
        for key in reversed(keys):
            if self._index.readable(key):
                self._records.touch(self._slots[key])
        self._free_dropped()

    def end(self, lease: Lease) -> None:
        """The connection has ended, whatever was to become of its lease."""
        if lease not in self._leases:
            return
        if lease.writes:
            self._leases.remove(lease)
            self._abandoned.append(lease)
        else:
            self.give_back(lease)

    def settled(self, owner: Owner) -> None:
        """None of its earlier copies is under way."""
        self._end_abandoned(owner)

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents, present or yet to come, until then."""
        self._index.pin(keys, until)

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """A new request can use these contents, which form a prefix: eviction may learn from that."""
        self._index.on_lookup(keys)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Nobody finds these contents any more. Their slots are free when their last readers have gone."""
        keys = [key for key in keys if self._index.knows(key)]
        self._index.forget(keys)
        for key in keys:
            self._tell(BlockKey(key, ()), 0, NOBODY)
        self._free_dropped()

    # --- the rest ---

    def check_integrity(self) -> None:
        """Compare the books with each other and with the records.

        Raises:
            AssertionError: naming the first contradiction.
        """
        writing = [lease for lease in (*self._leases, *self._abandoned) if lease.writes]
        self._index.check_integrity(
            reading=(each.hash for lease in self._leases if not lease.writes for each in lease.block_keys),
            arriving=(each.hash for lease in writing for each in lease.block_keys),
        )
        self._free.check_integrity()
        slots = {*self._slots.values(), *self._free}
        counts = f"{len(self._slots)} taken, {len(self._free)} free of {self._records.geometry.slots}"
        assert len(self._slots) + len(self._free) == len(slots) == self._records.geometry.slots, counts
        assert len(self._slots) == len(self._index), f"{len(self._index)} contents have {len(self._slots)} slots"
        arriving = {self._slots[each.hash]: lease.owner for lease in writing for each in lease.block_keys}
        for key, slot in self._slots.items():
            record = self._records.read(slot)
            assert record is not None, f"slot {slot} is taken and has no record"
            assert record.writer == arriving.get(slot, NOBODY), f"slot {slot} is written by {record.writer}"
            assert record.writer != NOBODY or record.block_key.hash == key, f"slot {slot} holds another content"
        assert not any(map(self._records.read, self._free)), "a free slot has a record"

    def _free_dropped(self) -> None:
        freed = []
        for key in self._index.take_drops():
            slot = self._slots.pop(key)
            self._records.clear(slot)
            freed.append(slot)
            self._tell(BlockKey(key, ()), 0, NOBODY)
        self._free.add_all(freed)

    def _end_abandoned(self, settled: Owner = NOBODY) -> None:
        """Free what was being written by engines that have ended, or are known not to write any more."""
        over = [lease for lease in self._abandoned if lease.owner == settled or not self._alive(lease.owner.pid)]
        for lease in over:
            self._abandoned.remove(lease)
            self._index.arrived([each.hash for each in lease.block_keys], [0] * len(lease.block_keys))
        self._free_dropped()

    def _recover(self) -> None:
        """Enter what an earlier keeper left."""
        kept, free = list[tuple[int, int, BlockKey]](), list[int]()
        for slot in range(self._records.geometry.slots):
            record = self._records.read(slot)
            if record is not None and record.writer != NOBODY:
                block_key = BlockKey(b"slot" + slot.to_bytes(8), ())  # of no content
                self._index.reserve(block_key)
                self._slots[block_key.hash] = slot
                self._abandoned.append(Lease(record.writer, [block_key], writes=True))
            elif record is not None and checksum(self._records.row(slot)) == record.checksum:
                kept.append((record.used, slot, record.block_key))
            else:
                self.damaged += record is not None
                self._records.clear(slot)
                free.append(slot)
        for _, slot, block_key in sorted(kept):
            if self._index.knows(block_key.hash):
                self._records.clear(slot)
                free.append(slot)
            else:
                self._index.seed(block_key, self._bytes)
                self._slots[block_key.hash] = slot
        self._free.add_all(free)
        self._end_abandoned()
