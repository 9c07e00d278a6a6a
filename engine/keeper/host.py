"""The keeper's host tier as an engine sees it: it copies into and out of the shared memory itself."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from engine.keeper.client import Lane
from engine.keeper.messages import KNOWN, Asked, Done, Drop, GivenSlots, Keep, Lend, Release
from engine.keeper.slab import SharedSlab
from engine.kv_store.store import BlockStore, Capabilities, Kept, Lent, Rows, StoreLost
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import TierChanges

HOST = "host"


class KeptHost(BlockStore):
    """Blocks in the keeper's slab, under the contract of `BlockStore`.

    `put`: the keeper gives slots, we fill them, and it hears their checksums: until then nobody finds them. `get`: it lends slots,
    we copy them and give them back; that it takes them back says that they were ours all the time. If it was killed meanwhile,
    nothing counts as read.

    Args:
        slab: closed with this store, unless others have it open.
    """

    capabilities = Capabilities(contiguous_rows=True, device_visible=True, shared=True, survives=True, returns=True)

    def __init__(self, slab: SharedSlab) -> None:
        self.save_copies = self.load_copies = 0
        self._slab, self._client = slab, slab.client
        slab.users += 1

    def put(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[int]:
        """Copy these blocks into the slab; returns the bytes that each takes, 0 if it was not kept."""
        block_bytes = self._slab.rows.shape[1]
        with self._client.lane() as lane:
            slots, copies = self._slab.save(lane, block_keys, rows)
        self.save_copies += copies
        arrived = {block_key for block_key, slot in zip(block_keys, slots, strict=True) if slot >= 0 or slot == KNOWN}
        return [block_bytes if block_key in arrived else 0 for block_key in block_keys]

    def get(self, block_keys: Sequence[BlockKey], rows: Rows) -> list[bool]:
        """Copy these contents out of the slab; False where one is not there."""
        with self._client.lane() as lane, self._lending(lane, block_keys) as slots:
            copies = self._slab.load(slots, rows)
        self.load_copies += copies
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

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Have these contents kept until then, whoever put them."""
        with self._client.lane() as lane:
            lane.ask(Keep(tier=HOST, keys=list(keys), until=until), Done)

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """Tell what a new request can use: the keeper evicts, for all engines."""
        with self._client.lane() as lane:
            lane.ask(Asked(tier=HOST, keys=list(keys)), Done)

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
        self._slab.connect()

    def close(self) -> None:
        """End the connections and give the memory back. What is there stays."""
        self._slab.close()

    @contextmanager
    def _lending(self, lane: Lane, block_keys: Sequence[BlockKey]) -> Iterator[list[int]]:
        slots = lane.ask(Lend(block_keys=list(block_keys)), GivenSlots).slots
        try:
            yield slots
        finally:
            lane.ask(Release(), Done)
