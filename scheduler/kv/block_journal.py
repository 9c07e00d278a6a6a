"""What came and went since somebody last asked: a bounded record that is made while contents change.

Nothing is recorded where nobody asks: pools and tiers have a journal only once one was given to them.
"""

from scheduler.types.block_changes import BlockChanges, RemovedBlocks, StoredBlocks

MOST_CHANGES = (
    2**15
)  # waiting to be told; beyond it the oldest are dropped, which costs whoever listens time and nothing else


class BlockJournal:
    """The changes of one replica's device and tiers. A content that came and went again is one change, its last.

    Args:
        limit: changes remembered.
    """

    def __init__(self, limit: int = MOST_CHANGES) -> None:
        self._limit = limit
        self._changes: dict[tuple[str, bytes], tuple[bool, bytes | None]] = {}  # whether it came, and its parent
        self._anew = True

    def stored(self, tier: str, name: bytes, parent: bytes | None) -> None:
        """A content came."""
        self._enter(tier, name, True, parent)

    def removed(self, tier: str, name: bytes) -> None:
        """A content went."""
        self._enter(tier, name, False, None)

    def _enter(self, tier: str, name: bytes, came: bool, parent: bytes | None) -> None:
        key = (tier, name)
        self._changes.pop(key, None)
        self._changes[key] = (came, parent)
        if len(self._changes) > self._limit:
            del self._changes[next(iter(self._changes))]

    def take(self) -> BlockChanges | None:
        """The changes since the last call; None if there were none. The first ones are `anew`."""
        if not self._changes and not self._anew:
            return None
        taken, self._changes = self._changes, {}
        found = BlockChanges(anew=self._anew)
        self._anew = False
        removed: dict[str, RemovedBlocks] = {}
        last: StoredBlocks | None = None
        for (tier, name), (came, parent) in taken.items():
            if not came:
                removed.setdefault(tier, RemovedBlocks(tier=tier, names=[])).names.append(name)
            elif last is not None and last.tier == tier and last.names[-1] == parent:
                last.names.append(name)
            else:
                last = StoredBlocks(tier=tier, names=[name], parent=parent)
                found.stored.append(last)
        found.removed = list(removed.values())
        return found
