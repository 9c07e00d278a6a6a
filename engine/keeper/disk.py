"""The keeper's disk tier as an engine sees it: blocks go through the shared memory, which the keeper writes and fills."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from engine.keeper.messages import Asked, Done, Drop, GivenSlots, Keep, Lend, Look, Read, Release, Sizes, Write
from engine.keeper.slab import SharedSlab
from engine.kv_store.store import BlockStore, Capabilities, Kept, Rows, StoreLost
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import TierChanges

DISK = "disk"
_SECONDS = 120.0  # for a slow disk


class KeptDisk(BlockStore):
    """Blocks in the keeper's folder, under the contract of `BlockStore`. What is read is in the slab from then on, for all engines.

    Args:
        slab: closed with this store, unless others have it open.
    """

    capabilities = Capabilities(device_visible=True, shared=True, survives=True, returns=True)

    def __init__(self, slab: SharedSlab) -> None:
        self.save_copies = self.load_copies = 0
        self._slab, self._client = slab, slab.client
        slab.users += 1

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Have these blocks written, those that are not in the slab through it. Returns the bytes that each takes."""
        with self._client.lane(_SECONDS) as lane:
            if rows.pool is not self._slab.rows:
                self.save_copies += self._slab.save(lane, block_keys, rows)[1]
            slots = lane.ask(Lend(block_keys=list(block_keys)), GivenSlots).slots
            lent = list(
                dict.fromkeys(block_key for block_key, slot in zip(block_keys, slots, strict=True) if slot >= 0)
            )
            sizes = dict(zip(lent, lane.ask(Write(), Sizes).sizes, strict=True))
        return [sizes.get(block_key, 0) for block_key in block_keys]

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Have these contents brought into the slab, and copy them out of it; False where one is not there."""
        with self._client.lane(_SECONDS) as lane:
            slots = lane.ask(Read(block_keys=list(block_keys)), GivenSlots).slots
            try:
                copies = self._slab.load(slots, rows)
            finally:
                lane.ask(Release(), Done)
        self.load_copies += copies
        return [slot >= 0 for slot in slots]

    def drop(self, keys: Iterable[bytes]) -> None:
        """Have these contents forgotten, for all."""
        keys = list(keys)
        if keys:
            with suppress(StoreLost), self._client.lane() as lane:
                lane.ask(Drop(tier=DISK, keys=keys), Done)

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Have these contents kept until then, whoever put them."""
        with self._client.lane() as lane:
            lane.ask(Keep(tier=DISK, keys=list(keys), until=until), Done)

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """Tell what a new request can use: the keeper evicts, for all engines."""
        with self._client.lane() as lane:
            lane.ask(Asked(tier=DISK, keys=list(keys)), Done)

    def kept(self) -> Iterable[Kept]:
        """What is there."""
        return self._client.contents(DISK)

    def changes(self) -> TierChanges:
        """What came and went since the last call: it is known already."""
        return self._client.changes(DISK)

    def on_changes(self, tell: Callable[[], None]) -> None:
        """Call this when the keeper tells of changes."""
        self._client.on_changes(DISK, tell)

    def check(self) -> None:
        """Connect again, if the connection was lost; and see whether the keeper can reach its folder."""
        self._slab.connect()
        with self._client.lane(_SECONDS) as lane:
            lane.ask(Look(), Done)

    def close(self) -> None:
        """End the connections. What was written stays."""
        self._slab.close()
