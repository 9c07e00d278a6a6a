"""How much of all batches is under way: sequences, since one line may have thousands of them."""

import asyncio
from collections import deque


class Window:
    """Room for sequences. Who waits longest is next, so that batches take turns.

    Args:
        size: sequences. A line of more has all of it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, sequences: int) -> None:
        """Wait for room for so many."""
        if not self._waiting and sequences <= self._free:
            self._free -= sequences
            return
        entry = sequences, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            self.give(0 if entry[1].cancelled() else sequences)
            raise

    def give(self, sequences: int) -> None:
        """These are no more under way."""
        self._free += sequences
        while self._waiting:
            asked, turn = self._waiting[0]
            if not turn.cancelled():
                if asked > self._free:
                    break
                self._free -= asked
                turn.set_result(None)
            self._waiting.popleft()


class Slot:
    """The room of one line."""

    def __init__(self, window: Window, sequences: int) -> None:
        self._window, self._sequences = window, min(sequences, window.size)
        self._taken = False

    async def take(self) -> None:
        """Wait for it."""
        await self._window.take(self._sequences)
        self._taken = True

    def give(self) -> None:
        """Leave it to others, if it was taken."""
        if self._taken:
            self._taken = False
            self._window.give(self._sequences)
