"""Blocks of KV that are counted, for traces in which no text is the beginning of another: nobody finds what a block holds.

Such a pool gives as many blocks as a real one, whose cached contents are evicted for whoever needs the room. Which ones they are
is of no interest to anybody, with one exception: a request that is preempted finds its own contents again. So whoever asks what a
victim would lose is told that contents matter, and the simulation begins anew with the blocks of a server (`Cluster.run`).
"""

from collections.abc import Iterable, Sequence

from loadtest.workload.plan import Planned
from scheduler.kv.block_pool import BlockPool, IntegrityError, OutOfBlocks


class ContentsMatter(Exception):
    """A request may be preempted: it would find what it had computed, and there is no telling how much of it."""


class CountedBlocks(BlockPool):
    """A pool that knows how many blocks are used. All have the same id, no content is kept.

    Args:
        blocks: how many.
        block_size: tokens in one block.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        super().__init__(blocks, block_size, caching=False)

    @property
    def free(self) -> int:
        """All that are not used."""
        return self.available

    @property
    def cached(self) -> int:
        """None."""
        return 0

    def allocate(self, count: int, after: int | None = None) -> list[int]:
        """Take `count` blocks. Raises OutOfBlocks if fewer are available."""
        if count > self.available:
            raise OutOfBlocks(f"{count} blocks asked for, {self.available} available")
        self.available -= count
        return [0] * count

    def release(self, block_ids: Sequence[int]) -> None:
        """Give these back."""
        self.available += len(block_ids)

    def shared(self, block_id: int) -> bool:
        """Raises ContentsMatter: who asks is about to choose whom to preempt."""
        raise ContentsMatter

    def check_integrity(self, tables: Iterable[Sequence[int]], copied: Iterable[Sequence[int]] = ()) -> None:
        """Compare with the tables of all sequences. Raises IntegrityError."""
        held = sum(map(len, tables))
        if held != self.used:
            raise IntegrityError(f"{self.used} blocks count as used, tables hold {held}")


def nothing_shared(requests: Iterable[Planned]) -> bool:
    """Whether no text is, as far as the trace says, the beginning of another."""
    return all(each.session is None and each.prompt is None and not each.blocks for each in requests)
