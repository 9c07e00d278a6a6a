"""What engines of other machines read in place, until they give it back or have been gone for too long."""

import asyncio
from collections.abc import Sequence

from engine.keeper.books import Lease
from engine.keeper.keeper import Keeper
from engine.keeper.peers.messages import LentOut
from scheduler.types.block_hash import BlockKey

LEASE_SECONDS = 60.0  # several times what a read may take: whoever has not given it back by then counts it as failed


class PeerLeases:
    """All calls belong to the event loop's thread.

    Args:
        keeper: whose contents they are.
    """

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._open: dict[int, tuple[Lease, asyncio.TimerHandle]] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._open)

    def lend(self, block_keys: Sequence[BlockKey]) -> LentOut:
        """Keep these contents where they are."""
        lease, slots = self._keeper.lend(block_keys)
        self._last += 1
        timer = asyncio.get_running_loop().call_later(LEASE_SECONDS, self.end, self._last)
        self._open[self._last] = lease, timer
        return LentOut(lease=self._last, slots=slots)

    def end(self, number: int) -> bool:
        """They have been read, or nobody reads them any more. Returns whether they were still lent."""
        found = self._open.pop(number, None)
        if found is None:
            return False
        lease, timer = found
        timer.cancel()
        self._keeper.books.give_back(lease)
        return True

    def close(self) -> None:
        """End all of them."""
        for number in list(self._open):
            self.end(number)
