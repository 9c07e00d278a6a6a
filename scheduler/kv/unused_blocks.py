"""The blocks of a pool that nobody refers to: empty ones, those whose content is kept, and what is given up to take a block.

An unused content first belongs to the eviction policy (`scheduler.kv.eviction`). What the policy gives up is *lazily evicted*: its
block is free, but still found by its key until it is taken. If copies between tiers should be few and long, some blocks are evicted
in this way ahead of need, so that adjacent blocks can be chosen (`scheduler.kv.free_blocks`).

What belongs here: which content makes room for a new one. Never: owners, token ids, requests.
"""

from collections.abc import Iterable, Mapping, Sequence

from scheduler.kv.eviction import Eviction
from scheduler.kv.free_blocks import FreeBlocks


class UnusedBlocks:
    """Unused blocks of one pool, all empty and free at first.

    Args:
        blocks: number of blocks in the pool, used ones included.
        holders: the pool's index: the block of each content, used ones included. Only read here; the pool changes it.
        eviction: knows the unused contents that have not been given up.
        choice: share of the unused blocks that is kept free.
    """

    def __init__(self, blocks: int, holders: Mapping[bytes, int], eviction: Eviction, choice: float) -> None:
        self.eviction = eviction
        self._choice = choice
        self._holders = holders
        self._free = FreeBlocks(blocks)
        self._free.add(range(blocks))
        self._lazy = 0  # lazily evicted: free blocks with content

    def __len__(self) -> int:
        return len(self._free) + len(self.eviction)

    @property
    def empty(self) -> int:
        """Blocks without content."""
        return len(self._free) - self._lazy

    @property
    def cached(self) -> int:
        """Blocks with content."""
        return len(self.eviction) + self._lazy

    # --- blocks go ---

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` blocks; there must be that many. The pool forgets their contents and calls `gave_up`.

        Args:
            count: number of blocks.
            after: the last block of the sequence's table; the blocks after it are taken if free.
        """
        evicted: list[int] = []
        if count > 1 or after not in self._free.tail_owners:  # else its reserved tail has the block
            if self._choice:
                self._evict_ahead(count)
            else:
                evicted = self._evict(count)
        return self._free.take(count - len(evicted), after) + evicted

    def gave_up(self, count: int) -> None:
        """So many blocks that were just taken had a content."""
        self._lazy -= count

    def _evict(self, count: int) -> list[int]:
        """Evict as many blocks as `count` exceeds the open ones, in the policy's order; pinned contents only if need be."""
        lacking = max(min(count - self._free.open, self.eviction.unpinned), count - len(self._free))
        if lacking <= 0:
            return []
        self._lazy += lacking
        return sorted(map(self._holders.__getitem__, self.eviction.victims(lacking)))

    def _evict_ahead(self, count: int) -> None:
        """Evict enough to choose `count` blocks and their tail from; pinned contents only if there is no other way."""
        spare = int(len(self) * self._choice)
        lacking = count + self._free.next_tail + spare - self._free.open
        if lacking < spare // 4:  # so that many are given up at once, and adjacent ones become one run
            lacking = 0
        needed = max(min(lacking, self.eviction.unpinned), count - len(self._free))
        if needed > 0:
            self._free.add(map(self._holders.__getitem__, self.eviction.victims(needed)))
            self._lazy += needed

    def pick_up(self, key: bytes) -> None:
        """This content is in use again."""
        if key in self.eviction:
            self.eviction.remove(key)
        else:
            self._free.discard(self._holders[key])
            self._lazy -= 1

    # --- blocks come ---

    def put_back(self, released: Iterable[int], empty: Iterable[int], keys: Sequence[bytes]) -> None:
        """Nobody uses these blocks any more.

        Args:
            released: all of them.
            empty: those without content.
            keys: contents of the others, in the order of the prefix.
        """
        owners = self._free.tail_owners
        for block_id in released:
            if block_id in owners:
                self._free.release_tail(block_id)
        self._free.add(empty)
        self.eviction.add(*keys)

    def readmit(self, keys: Iterable[bytes]) -> None:
        """Hand those of these unused contents that were lazily evicted back to the policy."""
        for key in keys:
            if key not in self.eviction:
                self.pick_up(key)
                self.eviction.add(key)

    def drop_contents(self) -> None:
        """All contents are about to be forgotten: their blocks become empty."""
        self._free.add([self._holders[key] for key in self.eviction])
        self.eviction.clear()
        self._lazy = 0

    # --- invariants ---

    def check_integrity(self, unused: Mapping[int, bytes | None]) -> None:
        """Compare the books with the pool's.

        Args:
            unused: all blocks that are in no table, with the hashes of their contents.

        Raises:
            AssertionError: names the first contradiction.
        """
        self._free.check_integrity()
        self.eviction.check_integrity()
        free, kept = set(self._free), {self._holders[key] for key in self.eviction if key in self._holders}
        assert len(kept) == len(self.eviction), "the policy knows contents that no block holds"
        assert not free & kept, f"blocks that are free and the policy's: {free & kept}"
        assert free | kept == unused.keys(), f"blocks that are neither used, nor free, nor the policy's: {free | kept}"
        lazy = sum(unused[block_id] is not None for block_id in free)
        assert self._lazy == lazy, f"{self._lazy} blocks are counted as lazily evicted instead of {lazy}"
        assert not any(owner in unused for owner in self._free.tail_owners), "a tail is kept for an unused block"
