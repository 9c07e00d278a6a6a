"""Whether new work is taken, and when open work has ended."""

import asyncio


class Drain:
    """Counts the HTTP requests under way. `begin` closes the gate; `idle` waits for the count to reach zero.

    Attributes:
        over: set when the time of requests is up, for streams that have no end of their own and are not counted.
    """

    def __init__(self) -> None:
        self.draining = False
        self.over = asyncio.Event()
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        """A request starts."""
        self._active += 1
        self._idle.clear()

    def leave(self) -> None:
        """A request ended, in whatever way."""
        self._active -= 1
        if self._active == 0:
            self._idle.set()

    @property
    def active(self) -> int:
        """How many requests are under way."""
        return self._active

    def begin(self) -> None:
        """Take no new requests from now on."""
        self.draining = True

    async def idle(self, seconds: float) -> bool:
        """Wait until nothing is under way, for at most `seconds`; whether that happened."""
        if self._idle.is_set():  # with no time to wait, `wait_for` would not look
            return True
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True
