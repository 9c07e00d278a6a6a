"""The keeper: what is in the slab and on the disk for all engines of a machine, and who is told of changes.

Everything but reading and writing the disk happens in one thread, the event loop's, so the books need no locks.

What belongs here: which blocks the tiers are for, and what goes between them. Never: connections (`session`), what is kept and
where (`SlabBooks`, `Shelf`).
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from mmap import mmap

import numpy as np
import numpy.typing as npt

from engine.keeper.books import Lease, SlabBooks
from engine.keeper.budget import KeeperBudget
from engine.keeper.messages import Hello, Welcome
from engine.keeper.records import NOBODY, Geometry, Owner, Records
from engine.keeper.shelf import Shelf
from engine.keeper.subscriber import Subscriber
from engine.kv_store.disk.opening import open_disk
from engine.kv_store.disk.record import checksum, size_of
from engine.kv_store.store import Rows, StoreLost
from scheduler.kv.eviction import eviction_of
from scheduler.types.block_hash import BlockKey

log = logging.getLogger("headrace.keeper")

HOST, DISK = "host", "disk"
_FLUSHED = 16  # blocks at once: the last ones may still be written when the time is over


class Nonsense(Exception):
    """An engine asks for what makes no sense; the sentence says why."""


class Keeper:
    """The tiers of one machine.

    Args:
        descriptor: of the shared memory, which grows to its size with the first engine.
        budget: what the tiers may take.
        eviction: name of the policy.
        clock: seconds, monotonic.
    """

    def __init__(
        self, descriptor: int, budget: KeeperBudget, eviction: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._descriptor = descriptor
        self._budget = budget
        self._eviction = eviction
        self._clock = clock
        self._own = Owner(os.getpid(), 0)
        self._books: SlabBooks | None = None
        self._geometry: Geometry | None = None
        self._rows = Rows(np.empty((0, 0), np.uint8), [])
        self._shelf: Shelf | None = None
        self._no_shelf = "there is no disk tier"
        self._subscribers: set[Subscriber] = set()
        self._connections = 0  # that were welcomed
        self._dividing = asyncio.Lock()
        self._fetching = asyncio.Lock()

    @property
    def books(self) -> SlabBooks:
        """What is in the slab.

        Raises:
            Nonsense: no engine has said hello yet.
        """
        if self._books is None:
            raise Nonsense("the first message must be Hello")
        return self._books

    @property
    def shelf(self) -> Shelf:
        """What is on the disk.

        Raises:
            StoreLost: there is none, or it cannot be used.
        """
        if self._shelf is None:
            raise StoreLost(self._no_shelf)
        return self._shelf

    def contents(self, tier: str) -> list[tuple[BlockKey, int]]:
        """What can be read from a tier, least recently used first, with the bytes that each takes.

        Raises:
            StoreLost: there is no such tier.
        """
        return self.books.contents() if tier == HOST else self.shelf.contents()

    def drop(self, tier: str, keys: Sequence[bytes]) -> None:
        """Nobody finds these contents in that tier any more; what is dropped from the disk is not read from memory instead.

        Raises:
            StoreLost: there is no such tier.
        """
        self.books.drop(keys)
        if tier == DISK:
            self.shelf.drop(keys)

    def pin(self, tier: str, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents in that tier until then.

        Raises:
            StoreLost: there is no such tier.
        """
        tier_books = self.books if tier == HOST else self.shelf
        tier_books.pin(keys, until)

    def on_lookup(self, tier: str, keys: Sequence[bytes]) -> None:
        """A new request of some engine can use these contents of that tier, which form a prefix.

        Raises:
            StoreLost: there is no such tier.
        """
        tier_books = self.books if tier == HOST else self.shelf
        tier_books.on_lookup(keys)

    # --- other machines ---

    @property
    def divided(self) -> bool:
        """Whether an engine of this machine has said what its blocks are."""
        return self._geometry is not None

    def expect_blocks(self, fingerprint: str, block_bytes: int) -> None:
        """Refuse who has other blocks than ours.

        Raises:
            Nonsense: they are, or no engine has said hello yet.
        """
        here = self._geometry
        if here is None:
            raise Nonsense("no engine of this machine has come yet")
        if (here.fingerprint, here.block_bytes) != (fingerprint, block_bytes):
            raise Nonsense(f"it keeps KV blocks of another kind: of {here.fingerprint}, not of {fingerprint}")

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """The slots, uint8 [slots, block bytes]."""
        return self._rows.array

    def lend(self, block_keys: Sequence[BlockKey]) -> tuple[Lease, list[int]]:
        """Keep these contents where they are. Returns the lease, and a slot for each or `NOT_THERE`."""
        return self.books.lend(self._own, block_keys)

    def copies(self, block_keys: Sequence[BlockKey]) -> list[bytes | None]:
        """The bytes of these contents; None where one is not in memory."""
        lease, slots = self.books.lend(self._own, block_keys)
        try:
            return [self._rows.array[slot].tobytes() if slot >= 0 else None for slot in slots]
        finally:
            self.books.give_back(lease)

    # --- engines come and go ---

    async def welcome(self, hello: Hello) -> Welcome:
        """Take an engine in. The first one decides what the tiers are for.

        Raises:
            Nonsense: its blocks are not those of the engines that are here.
            StoreRefused: another server holds the folder.
        """
        if hello.block_bytes < 1:
            raise Nonsense(f"a block takes {hello.block_bytes} bytes")
        slots = self._budget.slots(hello.block_bytes)
        geometry = Geometry(hello.fingerprint, slots, hello.block_bytes, hello.block_tokens)
        async with self._dividing:
            if self._geometry != geometry:
                if self._connections:
                    raise Nonsense(f"it keeps KV blocks of another kind: {_difference(self._geometry, geometry)}")
                await self._divide(geometry, hello.element_bytes)
        if hello.fresh:
            self.books.settled(Owner(hello.pid, hello.client))
        self._connections += 1
        return Welcome(slots=geometry.slots, offset=geometry.offset)

    def goodbye(self) -> None:
        """A connection that was welcomed has ended."""
        self._connections -= 1

    def subscribe(self, owner: Owner) -> Subscriber:
        """Whom to tell of changes from now on."""
        subscriber = Subscriber(owner)
        self._subscribers.add(subscriber)
        return subscriber

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """It does not listen any more."""
        self._subscribers.discard(subscriber)

    # --- between slab and disk ---

    async def write(self, lease: Lease) -> list[int]:
        """Write what is lent to the disk. Returns the bytes that each content takes there; 0 if it was not kept.

        Raises:
            StoreLost: the disk has failed, or there is none.
        """
        slots = [self.books.slot(block_key) for block_key in lease.block_keys]
        with self._losing():
            return await self.shelf.write(lease.block_keys, Rows(self._rows.pool, slots))

    async def fetch(self, block_keys: Sequence[BlockKey]) -> None:
        """Bring those of these contents that are not in the slab there from the disk, as far as there is room.

        Raises:
            StoreLost: the disk has failed, or there is none.
        """
        async with self._fetching:  # what two engines ask for is read once
            wanted = [each for each in dict.fromkeys(block_keys) if self.shelf.finds(each)]
            self.shelf.touch(wanted)
            lease, slots = self.books.reserve(self._own, wanted)
            into = Rows(self._rows.pool, [slot for slot in slots if slot >= 0])
            checksums: list[int | None] = [None] * len(into.ids)
            try:
                with self._losing():
                    came = await self.shelf.read(lease.block_keys, into)
                sums = [checksum(into.array[row].data) for row in into.ids]
                checksums = [each if there else None for each, there in zip(sums, came, strict=True)]
            finally:
                self.books.commit(lease, checksums)

    async def look(self) -> None:
        """See whether the disk can still be reached.

        Raises:
            StoreLost: it cannot, or there is none.
        """
        with self._losing():
            await self.shelf.check()

    async def flush(self, seconds: float) -> None:
        """Write to the disk what only the slab has, what was used last first, for that long, and say in one line how much it was.

        No more is written than fits beside what the disk has of it, so that nothing of more worth is pushed out.
        """
        if self._books is None or self._shelf is None:
            return
        began = self._clock()
        newest = [block_key for block_key, _ in reversed(self._books.contents())]
        safe = [block_key for block_key in newest if self._shelf.finds(block_key)]
        self._shelf.touch(safe)
        unsaved = [block_key for block_key in newest if not self._shelf.finds(block_key)]
        waiting = unsaved[: max(0, self._shelf.capacity - len(safe))]
        self._shelf.expect_newest_first()
        written, cause = 0, "the disk has no room for them"
        while waiting and not cause.startswith("the tier"):
            if self._clock() - began >= seconds:
                cause = "drain_seconds are over"
                break
            part, waiting = waiting[:_FLUSHED], waiting[_FLUSHED:]
            lease, _ = self._books.lend(self._own, part)
            try:
                written += sum(size > 0 for size in await self.write(lease))
            except StoreLost as error:
                cause = f"the tier failed: {error}"
            finally:
                self._books.end(lease)
        if unsaved:
            text = "stopping: wrote %d of %d KV blocks that were nowhere else to tier disk in %.2f s"
            log.info(text, written, len(unsaved), self._clock() - began)
        if written < len(unsaved):
            log.warning("stopping: %d KV blocks are lost: %s", len(unsaved) - written, cause)

    def close(self) -> None:
        """Give the folder back."""
        if self._shelf is not None:
            self._shelf.close()

    async def _divide(self, geometry: Geometry, element_bytes: int) -> None:
        """Use the tiers for these blocks: with what is there if they were for them before."""
        if geometry.slots < 1:
            raise Nonsense(f"a block takes {geometry.block_bytes} bytes, and there is room for {self._budget.slab}")
        if os.fstat(self._descriptor).st_size < geometry.size:
            os.ftruncate(self._descriptor, geometry.size)
        memory = mmap(self._descriptor, geometry.size)
        policy = eviction_of(self._eviction, geometry.slots)
        make = partial(SlabBooks, clock=self._clock)
        books = await asyncio.to_thread(make, Records(memory, geometry), policy, self._tell_of_slab)
        await self._open_shelf(geometry, element_bytes)
        array = np.frombuffer(memory, np.uint8, geometry.slots * geometry.block_bytes, geometry.offset)
        self._rows = Rows(array.reshape(geometry.slots, geometry.block_bytes), range(geometry.slots))
        self._books, self._geometry = books, geometry
        if len(books) or books.damaged:
            log.info("found %d KV blocks in memory, dropped %d that were damaged", len(books), books.damaged)

    async def _open_shelf(self, geometry: Geometry, element_bytes: int) -> None:
        if self._shelf is not None:
            await asyncio.to_thread(self._shelf.close)
            self._shelf = None
        folder, capacity, block_bytes = self._budget.folder, self._budget.disk, geometry.block_bytes
        if folder is None:
            return
        try:
            store = await asyncio.to_thread(
                open_disk, folder, capacity, block_bytes, element_bytes, geometry.fingerprint
            )
        except StoreLost as error:
            self._no_shelf = str(error)
            log.warning("the KV tier on disk cannot be used: %s", error)
            return
        policy = eviction_of(self._eviction, capacity // size_of(block_bytes))
        self._shelf = Shelf(store, capacity, block_bytes, policy, self._tell_of_shelf, clock=self._clock)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """A disk that fails is not used any more."""
        try:
            yield
        except StoreLost as error:
            if self._shelf is not None:
                self._shelf, self._no_shelf = None, str(error)
                log.warning("the KV tier on disk is lost until the next start: %s", error)
            raise

    def _tell_of_slab(self, block_key: BlockKey, size: int, owner: Owner) -> None:
        for subscriber in self._subscribers:
            subscriber.tell(HOST, block_key, size, owner)

    def _tell_of_shelf(self, block_key: BlockKey, size: int) -> None:
        for subscriber in self._subscribers:
            subscriber.tell(DISK, block_key, size, NOBODY)


def _difference(here: Geometry | None, there: Geometry) -> str:
    if here is not None and here.block_bytes != there.block_bytes:
        return f"a block takes {here.block_bytes} bytes, not {there.block_bytes}"
    return f"of {here.fingerprint if here else 'none'}, not of {there.fingerprint}"
