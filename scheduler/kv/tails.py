"""Partly filled last blocks of sequences that have ended, kept for those that continue them (forks).

A fork finds the full blocks of what it continues as every request finds its prefix. What is left, less than a block, is kept here,
and copied by each fork before it writes to it (copy on write; Kwon et al. 2023, "Efficient Memory Management for Large Language
Model Serving with PagedAttention", section 4.4). Where others need the room, a tail is given up: its forks compute those tokens
again, so nobody ever waits for a block that is kept here.

What belongs here: which tails are kept. Never: who continues whom.
"""

from collections.abc import Iterable

from scheduler.kv.block_pool import BlockPool
from scheduler.types.request import ForkTail, Request


class Tails:
    """The tails of one `BlockPool`."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._kept: list[ForkTail] = []

    def keep(self, request: Request) -> None:
        """The request is about to end and give its blocks back, and others may continue it."""
        size, end = self._pool.block_size, request.computed
        tail = request.left_tail = ForkTail(end, request.block_hashes[: end // size])
        if end % size:
            tail.block = request.block_table[end // size]
            self._pool.share([tail.block])
            self._kept.append(tail)

    def of(self, request: Request, hits: int) -> ForkTail | None:
        """What a fork, about to start, copies after its first `hits` blocks; None if that is not there, or not what follows."""
        tail = request.forked_from
        if tail is None or tail.block is None or tail.end // self._pool.block_size != hits:
            return None
        return tail

    def take(self, tail: ForkTail, request: Request) -> None:
        """The fork has its blocks, and copies the tail into the one that it writes to first."""
        assert tail.block is not None
        self._pool.share([tail.block])
        request.copied, request.computed = tail.block, tail.end

    def drop(self, tails: Iterable[ForkTail | None]) -> None:
        """Nobody continues these any more."""
        for tail in tails:
            if tail is not None and tail.block is not None:
                self._pool.release([tail.block])
                self._kept.remove(tail)
                tail.block = None

    def give_up(self) -> bool:
        """Drop all, for the room; whether there were any."""
        found = list(self._kept)
        self.drop(found)
        return bool(found)

    def held(self) -> list[list[int]]:
        """The blocks, each as a table of its own."""
        return [[tail.block] for tail in self._kept if tail.block is not None]
