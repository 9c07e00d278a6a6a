"""What came and went since somebody last asked: a bounded record that is made while contents change.

Nothing is recorded where nobody asks: pools and tiers have a journal only once one was given to them.
"""

from itertools import islice

from scheduler.types.block_changes import BlockChanges, RemovedBlocks, StoredBlocks

# Waiting to be told; beyond it the oldest are dropped, which costs whoever listens time and nothing else.
MOST_CHANGES = 2**16
MOST_AT_ONCE = 2**12  # told at once; some 150 KB


class BlockJournal:
    """The changes of one replica's device and tiers. A content that came and went again is one change, its last.

    Args:
        limit: changes remembered.
    """

    def __init__(self, limit: int = MOST_CHANGES) -> None:
        self._limit = limit
        self._changes: dict[tuple[str, bytes], tuple[int, bytes | None]] = {}  # tokens that came, 0: it went; parent
        self._anew = True

    def stored(self, tier: str, name: bytes, tokens: int, parent: bytes | None = None) -> None:
        """A content of so many tokens came. `parent`: the name of what precedes it, if it is known."""
        self._enter(tier, name, tokens, parent)

    def removed(self, tier: str, name: bytes) -> None:
        """A content went."""
        self._enter(tier, name, 0, None)

    def _enter(self, tier: str, name: bytes, tokens: int, parent: bytes | None) -> None:
        key = (tier, name)
        self._changes.pop(key, None)
        self._changes[key] = (tokens, parent)
        if len(self._changes) > self._limit:
            del self._changes[next(iter(self._changes))]

    def take(self) -> BlockChanges | None:
        """Changes that were not told yet, the oldest first, not all at once; None if there are none. The first ones are `anew`."""
        if not self._changes and not self._anew:
            return None
        changes, self._anew = BlockChanges(anew=self._anew), False
        stored: dict[str, StoredBlocks] = {}
        removed: dict[str, RemovedBlocks] = {}
        for tier, name in list(islice(self._changes, MOST_AT_ONCE)):
            tokens, parent = self._changes.pop((tier, name))
            if tokens:
                blocks = stored.setdefault(tier, StoredBlocks(tier=tier, names=[], tokens=[], parents=[]))
                blocks.names.append(name)
                blocks.tokens.append(tokens)
                blocks.parents.append(parent)
            else:
                removed.setdefault(tier, RemovedBlocks(tier=tier, names=[])).names.append(name)
        changes.stored, changes.removed = list(stored.values()), list(removed.values())
        return changes
