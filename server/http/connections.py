"""All open connections of a server: how many there may be, which give way, and the clock that ends those that take too long."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from server.errors import ApiError, TooManyConnections
from server.http.limits import HttpLimits

READ_BYTES = 64 * 1024  # at a time from one connection: what comes then is worked on before others have their turn
_CALM = 0.9  # of a limit: below it there is room again, for the log
Refusal = Callable[[str], None]  # told the code of an error that is answered without an application
_log = logging.getLogger("headrace.http")


class Held(Protocol):
    """What the books say of a connection."""

    address: str

    def give_way(self, error: ApiError) -> None:
        """Close: another one needs the place."""

    def check(self, now: float) -> None:
        """End, if a deadline has passed."""

    def end_receiving(self, error: ApiError) -> None:
        """Refuse the request whose body is still on its way, if one is."""

    def cut(self) -> None:
        """Close at once."""


class Connections:
    """The books.

    A connection waits as long as the server waits for its client: for a request, its head or its body. Where the limit is reached,
    the one that has waited longest gives way to a new one; only where none waits is the new one refused. So clients that open
    connections and say nothing shut nobody out.

    Args:
        limits: for all connections.
        on_refusal: told the code of each error that is answered without an application.
    """

    def __init__(self, limits: HttpLimits, on_refusal: Refusal = lambda code: None) -> None:
        self.limits = limits
        self.on_refusal = on_refusal
        self._open: dict[Held, None] = {}
        self._waiting: dict[Held, None] = {}  # the longest first
        self._parting: dict[Held, None] = {}  # refused, and without a place; the longest first
        self._of: Counter[str] = Counter()
        self._crowded: set[str] = set()  # addresses that had reached their limit when the log last spoke of them
        self._full = False  # the same for all
        self._timer: asyncio.TimerHandle | None = None
        self.received = memoryview(bytearray(READ_BYTES))  # what the connection that reads now is given

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: Held) -> TooManyConnections | None:
        """Take a new connection in; why it has to be refused, where it has to."""
        error = self._make_room(connection.address)
        if error is None:
            self._open[connection] = self._waiting[connection] = None
            self._of[connection.address] += 1
            if self._timer is None:
                self._tick()
        return error

    def remove(self, connection: Held) -> None:
        """It is closed, or as good as that. May be called again."""
        self._parting.pop(connection, None)
        if connection not in self._open:
            return
        del self._open[connection]
        self._waiting.pop(connection, None)
        self._of[connection.address] -= 1
        if not self._of[connection.address]:
            del self._of[connection.address]

    def waits(self, connection: Held) -> None:
        """From now on the server waits for the client."""
        if connection in self._open:
            self._waiting[connection] = None

    def works(self, connection: Held) -> None:
        """From now on the client waits for the server."""
        self._waiting.pop(connection, None)

    def part(self, connection: Held) -> None:
        """It has no place any more, or never had one, and listens on for a moment so that its client sees why."""
        self.remove(connection)
        if len(self._parting) >= self.limits.parting:
            next(iter(self._parting)).cut()
        self._parting[connection] = None

    def end_receiving(self, error: ApiError) -> None:
        """Refuse the requests whose bodies are still on their way."""
        for connection in list(self._waiting):
            connection.end_receiving(error)

    def cut(self) -> None:
        """Close all at once."""
        for connection in [*self._open, *self._parting]:
            connection.cut()

    def _make_room(self, address: str) -> TooManyConnections | None:
        limits = self.limits
        if address and self._of[address] >= limits.of_one_address:  # clients of a Unix socket have none
            if address not in self._crowded:
                self._crowded.add(address)
                _log.warning(
                    "%s has %d connections open, which is the limit of one address", address, self._of[address]
                )
            longest = next((each for each in self._waiting if each.address == address), None)
            return self._replace(longest, f"{limits.of_one_address} connections of your address are open")
        if len(self._open) >= limits.connections:
            if not self._full:
                self._full = True
                _log.warning("%d connections are open, which is the limit (max_connections)", len(self._open))
            longest = next(iter(self._waiting), None)
            return self._replace(longest, f"{limits.connections} connections are open")
        return None

    def _replace(self, longest: Held | None, cause: str) -> TooManyConnections | None:
        error = TooManyConnections(f"{cause}, which is the limit.", headers={"Retry-After": "5"})
        if longest is None:
            return error
        self.remove(longest)
        longest.give_way(error)
        return None

    def _say_if_calm(self) -> None:
        """Say when there is room again. Only now and then: at the limit connections come and go by the thousand."""
        for address in [each for each in self._crowded if self._of[each] < _CALM * self.limits.of_one_address]:
            self._crowded.remove(address)
            _log.warning("%s is below the limit of connections of one address again", address)
        if self._full and len(self._open) < _CALM * self.limits.connections:
            self._full = False
            _log.warning("below the limit of %d connections again", self.limits.connections)

    def _tick(self) -> None:
        """Look at all connections now and then, as long as there are any: one timer instead of one for each."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in [*self._open, *self._parting]:
            try:
                connection.check(now)
            except Exception:  # one that is broken must not stop the clock of all others
                _log.exception("a connection of %s is broken", connection.address)
                connection.cut()
        self._say_if_calm()
        self._timer = loop.call_later(self.limits.tick_seconds, self._tick) if self._open or self._parting else None
