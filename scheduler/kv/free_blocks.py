"""Which blocks may be taken, and which of them a sequence gets: adjacent ones, with room to grow after them.

    table of A         tail of A   open         table of B    tail of B   open
    | 7 | 8 | 9 | 10 | 11 . . 14 | 15 . . 20 | 21 | 22 | 23 | 24 . . 29 | 30 . .

A sequence grows by single blocks in turn with all the others. Without a *reserved tail* each of them takes the block right after
another's table, and no table has two blocks in a row. Reserved tails are bounded in length and in number, and are given up
before anything has to wait for a block.

What belongs here: numbers of blocks. Never: owners, contents.
"""

from collections.abc import Iterable, Iterator, KeysView

from scheduler.kv.free_extents import FreeExtents

_TAIL = 8  # blocks of a reserved tail: at 32 tokens a block, an answer of a few hundred tokens
_TAIL_SHARE = 16  # at most one block in this many is in a reserved tail


class FreeBlocks:
    """The blocks of a pool that may be taken: each is open to all, or reserved for the used block that it follows."""

    def __init__(self, blocks: int) -> None:
        self._open = FreeExtents(blocks)
        self._tail_ends: dict[int, int] = {}  # used block: one past the end of the tail that begins after it
        self._reserved = 0
        self._limit = blocks // _TAIL_SHARE

    def __len__(self) -> int:
        return len(self._open) + self._reserved

    def __iter__(self) -> Iterator[int]:
        yield from self._open
        for owner, end in self._tail_ends.items():
            yield from range(owner + 1, end)

    @property
    def open(self) -> int:
        """Number of blocks that are reserved for nobody."""
        return len(self._open)

    @property
    def next_tail(self) -> int:
        """Length of the longest tail that can be reserved now, in blocks."""
        return max(0, min(_TAIL, self._limit - self._reserved))

    @property
    def tail_owners(self) -> KeysView[int]:
        """The used blocks that have a reserved tail."""
        return self._tail_ends.keys()

    def add(self, block_ids: Iterable[int]) -> None:
        """These may be taken from now on. None of them could be before."""
        self._open.add_all(block_ids)

    def discard(self, block_id: int) -> None:
        """This one may no longer be taken. Raises KeyError if it could not be taken before."""
        if block_id not in self._open:
            before = range(block_id - 1, block_id - _TAIL - 1, -1)
            owner = next((block for block in before if block in self._tail_ends), None)
            if owner is None:
                raise KeyError(f"block {block_id} is not free")
            self.release_tail(owner)
        self._open.take(block_id, block_id + 1)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` blocks in few runs, and reserve a tail after the last one. There must be that many.

        Args:
            count: number of blocks.
            after: a used block; what directly follows it is taken first.
        """
        if not count:
            return []
        if count == 1 and after in self._tail_ends:
            return [self._grow_into_tail(after)]
        taken: list[int] = []
        if after is not None:
            self.release_tail(after)
            self._take(after + 1, count, taken)
        while len(taken) < count:
            while not self._open:
                self.release_tail(next(iter(self._tail_ends)))
            rest = count - len(taken)
            self._take(self._open.find(rest + self.next_tail), rest, taken)
        self._reserve_tail(taken[-1])
        return taken

    def release_tail(self, owner: int) -> None:
        """Open the tail of this block to all, if it has one."""
        end = self._tail_ends.pop(owner, owner + 1)
        self._reserved -= end - owner - 1
        self._open.add(owner + 1, end)

    def check_integrity(self) -> None:
        """Compare the books with each other. Raises AssertionError that names the first contradiction."""
        self._open.check_integrity()
        blocks = list(self)
        assert len(blocks) == len(set(blocks)) == len(self), f"{len(self)} blocks count as free: {sorted(blocks)}"
        assert self._reserved == sum(end - owner - 1 for owner, end in self._tail_ends.items()) <= self._limit
        assert not self._tail_ends.keys() & set(blocks), "a tail is reserved after a block that is free itself"

    def _grow_into_tail(self, owner: int) -> int:
        end = self._tail_ends.pop(owner)
        self._reserved -= 1
        if owner + 2 < end:
            self._tail_ends[owner + 1] = end
        return owner + 1

    def _take(self, begin: int, count: int, taken: list[int]) -> None:
        """Take up to `count` open ids from `begin` on, in one run."""
        end = min(begin + count, self._open.end_of(begin))
        if begin < end:
            self._open.take(begin, end)
            taken += range(begin, end)

    def _reserve_tail(self, owner: int) -> None:
        end = min(owner + 1 + self.next_tail, self._open.end_of(owner + 1))
        if owner + 1 < end:
            self._open.take(owner + 1, end)
            self._tail_ends[owner] = end
            self._reserved += end - owner - 1
