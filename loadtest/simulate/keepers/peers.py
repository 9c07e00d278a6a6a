"""The keepers of all other nodes, to a replica one tier from which it loads, and to which it saves nothing.

What is there is in the books of those keepers; here is only who has it, and from whom it is being read.
"""

from collections.abc import Iterable, Sequence

from scheduler.kv.block_journal import BlockJournal
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.types.block_hash import BlockKey

PEER = "peer"  # the tier's name, and its link's in a hardware file


class Directory:
    """Which nodes have which contents."""

    def __init__(self) -> None:
        self.holders: dict[bytes, list[int]] = {}

    def journal(self, node: int) -> BlockJournal:
        """To be told what comes and goes in the keeper of a node."""
        return _NodeJournal(self, node)


class _NodeJournal(BlockJournal):
    """Keeps no record: what it is told is entered at once."""

    def __init__(self, directory: Directory, node: int) -> None:
        super().__init__(limit=0)
        self._directory = directory
        self._node = node

    def stored(self, tier: str, name: bytes, tokens: int, parent: bytes | None = None) -> None:
        self._directory.holders.setdefault(name, []).append(self._node)

    def removed(self, tier: str, name: bytes) -> None:
        holders = self._directory.holders.get(name, [])
        if self._node in holders:  # else it was on its way and never came
            holders.remove(self._node)
            if not holders:
                del self._directory.holders[name]


class OtherKeepers(TierIndex):
    """What the keepers of other nodes have.

    Args:
        node: on which the replica is.
        indices: the books of all nodes' keepers.
        directory: of them.
    """

    def __init__(self, node: int, indices: Sequence[TierIndex], directory: Directory) -> None:
        super().__init__(PEER, 0, indices[0].block_bytes, eviction_of("lru", 0), shared=True)
        self._node = node
        self._indices = indices
        self._directory = directory
        self._reading: dict[bytes, list[int]] = {}  # from which nodes, the first reader first

    def _holder(self, key: bytes) -> int | None:
        for node in self._directory.holders.get(key, ()):
            if node != self._node and self._indices[node].readable(key):
                return node
        return None

    def readable(self, key: bytes) -> bool:
        """Whether another node's keeper has it."""
        return self._holder(key) is not None

    def knows(self, key: bytes) -> bool:
        """The same: what is on its way there is of no use here."""
        return self.readable(key)

    def key_of(self, key: bytes) -> BlockKey | None:
        """The full key, as that keeper has it."""
        holder = self._holder(key)
        return None if holder is None else self._indices[holder].key_of(key)

    def reserve(self, block_key: BlockKey) -> bool:
        """Nothing is saved there."""
        return False

    def hold(self, keys: Sequence[bytes]) -> None:
        """A transfer begins to read these contents, which can be read now."""
        for key in keys:
            holder = self._holder(key)
            assert holder is not None
            self._indices[holder].hold([key])
            self._reading.setdefault(key, []).append(holder)

    def release(self, keys: Sequence[bytes]) -> None:
        """The transfer that reads these contents has ended."""
        for key in keys:
            node = self._reading[key].pop(0)
            if not self._reading[key]:
                del self._reading[key]
            self._indices[node].release([key])

    def arrives(self, key: bytes) -> bool:
        """Whether a content that is being read is still there; not if its node is lost."""
        return self._indices[self._reading[key][0]].readable(key)

    def vanished(self, keys: Iterable[bytes]) -> None:
        """The keeper that had them knows."""

    def touch(self, keys: Sequence[bytes]) -> None:
        """Their order is that keeper's."""

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """Their order is that keeper's."""

    def check_integrity(self, reading: Iterable[bytes], arriving: Iterable[bytes]) -> None:
        """There are no books of its own."""
