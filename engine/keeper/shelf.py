"""The disk tier of all engines: its books, and who is told. The bytes go between the slab and the disk in threads.

What belongs here: which contents are on the disk, and what goes when room is needed. Never: files (`engine.kv_store.disk`), slots.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from engine.kv_store.disk.record import size_of
from engine.kv_store.store import BlockStore, Rows
from scheduler.kv.eviction import Eviction
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.types.block_hash import BlockKey


class Shelf:
    """The books of one disk. All calls belong to the event loop's thread.

    Args:
        store: the disk's, which belongs to this object from now on.
        capacity: bytes that it may hold.
        block_bytes: of a block.
        policy: decides which content is evicted first.
        tell: called with a content and the bytes it takes; 0: it has gone.
        clock: seconds, monotonic; for pins.
    """

    def __init__(
        self,
        store: BlockStore,
        capacity: int,
        block_bytes: int,
        policy: Eviction,
        tell: Callable[[BlockKey, int], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = capacity // size_of(block_bytes)
        self._store = store
        self._index = TierIndex("disk", capacity, size_of(block_bytes), policy)
        self._tell = tell
        self._clock = clock
        self._reading: list[bytes] = []
        self._arriving: list[bytes] = []
        for block_key, size in store.kept():
            self._index.seed(block_key, size)
        self._drop()

    def __len__(self) -> int:
        return len(self._index)

    def contents(self) -> list[tuple[BlockKey, int]]:
        """What can be read now, least recently used first, with the bytes that each takes."""
        keys = [block_key for key in self._index.contents() if (block_key := self._index.key_of(key)) is not None]
        return [(block_key, self._index.size_of(block_key.hash)) for block_key in reversed(keys)]

    def finds(self, block_key: BlockKey) -> bool:
        """Whether the content can be read now."""
        return self._index.finds(block_key)

    def touch(self, block_keys: Iterable[BlockKey]) -> None:
        """These contents, which form a prefix, were used elsewhere."""
        self._index.touch([block_key.hash for block_key in block_keys])

    def expect_newest_first(self) -> None:
        """What is written from now on was used before what was written until then."""
        self._store.expect_newest_first()

    async def write(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Keep these blocks, each given once. Returns the bytes that each takes; 0 if it was not kept.

        Raises:
            StoreLost: the disk has failed.
        """
        row_of = dict(zip(block_keys, rows.ids, strict=True))
        self._index.expire(self._clock())
        absent = [block_key for block_key in block_keys if self._index.reserve(block_key)]
        self._drop()
        keys = [block_key.hash for block_key in absent]
        sizes = [0] * len(keys)
        self._arriving += keys
        try:
            into = Rows(rows.pool, [row_of[block_key] for block_key in absent])
            sizes = await asyncio.to_thread(self._store.put, absent, into)
        finally:
            for key in keys:
                self._arriving.remove(key)
            self._index.arrived(keys, sizes)
            self._drop()
        for block_key in absent:
            if self._index.finds(block_key):
                self._tell(block_key, self._index.size_of(block_key.hash))
        return [self._index.size_of(block_key.hash) if self._index.finds(block_key) else 0 for block_key in block_keys]

    async def read(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Fill the rows with these contents, each given once. Returns False where one is not there.

        Raises:
            StoreLost: the disk has failed.
        """
        there = [block_key for block_key in block_keys if self._index.finds(block_key)]
        row_of = dict(zip(block_keys, rows.ids, strict=True))
        keys = [block_key.hash for block_key in there]
        self._index.hold(keys)
        self._reading += keys
        came = set[BlockKey]()
        try:
            into = Rows(rows.pool, [row_of[block_key] for block_key in there])
            whole = await asyncio.to_thread(self._store.get, there, into)
            came = {block_key for block_key, arrived in zip(there, whole, strict=True) if arrived}
        finally:
            for key in keys:
                self._reading.remove(key)
            self._index.release(keys)
        self.drop(block_key.hash for block_key in there if block_key not in came)
        return [block_key in came for block_key in block_keys]

    async def check(self) -> None:
        """See whether the disk can still be reached.

        Raises:
            StoreLost: it cannot.
        """
        await asyncio.to_thread(self._store.check)

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents, present or yet to come, until then."""
        self._index.pin(keys, until)

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """A new request can use these contents, which form a prefix: eviction may learn from that."""
        self._index.on_lookup(keys)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Nobody finds these contents any more."""
        keys = [key for key in keys if self._index.knows(key)]
        self._index.forget(keys)
        for key in keys:
            self._tell(BlockKey(key, ()), 0)
        self._drop()

    def check_integrity(self) -> None:
        """Compare the books with each other and with the disk's.

        Raises:
            AssertionError: naming the first contradiction.
        """
        self._index.check_integrity(self._reading, self._arriving)
        self._store.check_integrity()

    def close(self) -> None:
        """Give files and threads back. What was written stays."""
        self._store.close()

    def _drop(self) -> None:
        gone = self._index.take_drops()
        self._store.drop(gone)
        for key in gone:
            self._tell(BlockKey(key, ()), 0)
