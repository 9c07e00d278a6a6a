"""How much of request bodies may be held until they are parsed, over all requests: clients may send faster than that is done."""

import asyncio
from types import TracebackType

from server.errors import TooManyBodies

ROOM_BYTES = 256 * 2**20
FREE_BYTES = 64 * 1024
PATIENCE_SECONDS = 30.0
_RETRY_AFTER = "5"  # seconds


class BodyRoom:
    """The room for all bodies.

    Where it is full, the request that has held a large body for longest reads on, so that there is always one that finishes. The
    others wait, and so do their clients, as nothing is read from them; a client that has to wait too long is told so.

    Args:
        limit: bytes of all bodies.
        free: bytes that each request may hold in any case.
        patience: seconds that a request waits for room.
    """

    def __init__(self, limit: int = ROOM_BYTES, free: int = FREE_BYTES, patience: float = PATIENCE_SECONDS) -> None:
        self.limit, self.free, self.patience = limit, free, patience
        self.held = 0
        self._large: dict[BodyShare, None] = {}  # those beyond what is free, in the order in which they came to be

    def share(self) -> "BodyShare":
        """What a new request holds: nothing yet."""
        return BodyShare(self)

    def add(self, share: "BodyShare", size: int) -> None:
        """So many bytes more are held."""
        self.held += size
        if share.held > self.free:
            self._large[share] = None

    def may_grow(self, share: "BodyShare") -> bool:
        """Whether its request may read on."""
        return self.held <= self.limit or share not in self._large or share is next(iter(self._large))

    def remove(self, share: "BodyShare") -> None:
        """It holds nothing any more."""
        self.held -= share.held
        self._large.pop(share, None)
        for other in self._large:
            if self.may_grow(other):
                other.go_on()


class BodyShare:
    """What one request holds of a body, as long as it is in the `with` statement."""

    def __init__(self, room: BodyRoom) -> None:
        self.held = 0
        self._room = room
        self._turn = asyncio.Event()

    def __enter__(self) -> "BodyShare":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._room.remove(self)

    async def grow(self, size: int) -> None:
        """So many bytes have come. Returns when more may be read.

        Raises:
            TooManyBodies: there was no room for too long.
        """
        self.held += size
        self._room.add(self, size)
        try:
            async with asyncio.timeout(self._room.patience):
                while not self._room.may_grow(self):
                    self._turn.clear()
                    await self._turn.wait()
        except TimeoutError:
            message = f"The bodies of all requests have {self._room.held} bytes; the limit is {self._room.limit}."
            raise TooManyBodies(message, headers={"Retry-After": _RETRY_AFTER, "Connection": "close"}) from None

    def go_on(self) -> None:
        """There is room."""
        self._turn.set()
