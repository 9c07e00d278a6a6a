"""The keeper's host tier as an engine sees it: it copies into and out of the shared memory itself."""

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from engine.keeper.client import KeeperClient, Lane
from engine.keeper.messages import KNOWN, Commit, Done, Drop, GivenSlots, Lend, Release, Reserve
from engine.kv_store.disk.record import checksum
from engine.kv_store.host_memory import pin, unpin
from engine.kv_store.row_copy import RowCopy
from engine.kv_store.store import BlockStore, Capabilities, Kept, Lent, Rows, StoreLost, StoreRefused
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import TierChanges

HOST = "host"


class SharedSlab:
    """The slots of the shared memory, mapped.

    Args:
        client: connected; says where the slots are.
        block_bytes: of each.
        pinned: keep them where they are, for a GPU's copy engines.

    Attributes:
        rows: uint8 [slots, block bytes].
        copy: copies between them and a device's blocks.

    Raises:
        StoreLost: the keeper is not there, or refuses.
        StoreRefused: the memory cannot be mapped or pinned.
    """

    def __init__(self, client: KeeperClient, block_bytes: int, *, pinned: bool) -> None:
        self.welcome = client.connect()
        offset, size = self.welcome.offset, self.welcome.slots * block_bytes
        try:
            pages = mmap.mmap(client.address.slab, offset + size)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                with suppress(OSError):  # a kernel without huge pages in shared memory: slower, not wrong
                    pages.madvise(mmap.MADV_HUGEPAGE)
            self.rows: Tensor = torch.frombuffer(pages, dtype=torch.uint8)[offset:].view(-1, block_bytes)
            if pinned:
                pin(self.rows)
        except (OSError, ValueError, RuntimeError) as error:
            how = "pinned" if pinned else "mapped"
            raise StoreRefused(f"{size / 2**30:.2f} GiB of shared memory cannot be {how} ({error})") from error
        self._pinned = pinned
        self.copy = RowCopy(self.rows)

    def close(self) -> None:
        """Give the memory back. No copy may be under way."""
        if self._pinned:
            unpin(self.rows)
            self._pinned = False
        self.rows = self.rows[:0].clone()
        self.copy = RowCopy(self.rows)


class KeptHost(BlockStore):
    """Blocks in the keeper's slab, under the contract of `BlockStore`.

    `put`: the keeper gives slots, we fill them, and it hears their checksums: until then nobody finds them. `get`: it lends slots,
    we copy them and give them back; that it takes them back says that they were ours all the time. If it was killed meanwhile,
    nothing counts as read.

    Args:
        client: closed with this store.
        slab: of that client; likewise.
    """

    capabilities = Capabilities(contiguous_rows=True, device_visible=True, shared=True, survives=True, returns=True)

    def __init__(self, client: KeeperClient, slab: SharedSlab) -> None:
        self.save_copies = self.load_copies = 0
        self._client = client
        self._slab = slab

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Copy these blocks into the slab; returns the bytes that each takes, 0 if it was not kept."""
        asked = list(zip(block_keys, rows.ids, strict=True))
        block_bytes = self._slab.rows.shape[1]
        with self._client.lane() as lane:
            slots = lane.ask(Reserve(block_keys=list(block_keys)), GivenSlots).slots
            pairs = [(row, slot) for (_, row), slot in zip(asked, slots, strict=True) if slot >= 0]
            checksums: list[int | None] = [None] * len(pairs)
            try:
                self.save_copies += self._slab.copy.to_slab(rows.pool, pairs)
                checksums = [checksum(self._slab.rows[slot].numpy().data) for _, slot in pairs]
            finally:
                lane.ask(Commit(checksums=checksums), Done)
        arrived = {block_key for block_key, slot in zip(block_keys, slots, strict=True) if slot >= 0 or slot == KNOWN}
        return [block_bytes if block_key in arrived else 0 for block_key in block_keys]

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Copy these contents out of the slab; False where one is not there."""
        with self._client.lane() as lane, self._lending(lane, block_keys) as slots:
            pairs = [(slot, row) for slot, row in zip(slots, rows.ids, strict=True) if slot >= 0]
            self.load_copies += self._slab.copy.from_slab(rows.pool, pairs)
        return [slot >= 0 for slot in slots]

    @contextmanager
    def lend(self, block_keys: Sequence[BlockKey]) -> Iterator[Lent]:
        """Rows of the slab, to be read without a copy."""
        with self._client.lane() as lane, self._lending(lane, block_keys) as slots:
            there = [(block_key, slot) for block_key, slot in zip(block_keys, slots, strict=True) if slot >= 0]
            yield Lent([block_key for block_key, _ in there], Rows(self._slab.rows, [slot for _, slot in there]))

    def drop(self, keys: Iterable[bytes]) -> None:
        """Have these contents forgotten, for all."""
        keys = list(keys)
        if keys:
            with suppress(StoreLost), self._client.lane() as lane:
                lane.ask(Drop(tier=HOST, keys=keys), Done)

    def kept(self) -> Iterable[Kept]:
        """What is there."""
        return self._client.contents(HOST)

    def changes(self) -> TierChanges:
        """What came and went since the last call: it is known already."""
        return self._client.changes(HOST)

    def on_changes(self, tell: Callable[[], None]) -> None:
        """Call this when the keeper tells of changes."""
        self._client.on_changes(HOST, tell)

    def check(self) -> None:
        """Connect again, if the connection was lost."""
        if self._client.connect() != self._slab.welcome:
            raise StoreLost("the keeper of the KV tiers has divided its memory anew")

    def close(self) -> None:
        """End the connections and give the memory back. What is there stays."""
        self._client.close()
        self._slab.close()

    @contextmanager
    def _lending(self, lane: Lane, block_keys: Sequence[BlockKey]) -> Iterator[list[int]]:
        slots = lane.ask(Lend(block_keys=list(block_keys)), GivenSlots).slots
        try:
            yield slots
        finally:
            lane.ask(Release(), Done)
