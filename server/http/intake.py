"""What a client sends: heads and bodies taken out of one buffer, one request at a time, and how long each may take to come."""

import asyncio
from collections.abc import Callable

from server.errors import RequestTimeout
from server.http.body import BodyReader, body_reader
from server.http.head import HeadReader, RequestHead
from server.http.limits import HttpLimits

_NEVER = float("inf")


class Intake:
    """Of one connection.

    Args:
        transport: whose reading is paused and resumed.
        limits: for all connections.
        clock: in seconds; the event loop's.

    Attributes:
        buffer: what has come and belongs to no head or body yet.
    """

    def __init__(self, transport: asyncio.ReadTransport, limits: HttpLimits, clock: Callable[[], float]) -> None:
        self.buffer = bytearray()
        self._transport = transport
        self._limits = limits
        self._clock = clock
        self._head = HeadReader()
        self._body: BodyReader | None = None
        self._reading = True
        self._deadline = _NEVER
        self._body_seconds_left = 0.0  # of a body that is not read on for now

    @property
    def in_body(self) -> bool:
        """Whether a request's body is still on its way."""
        return self._body is not None

    def take_head(self) -> RequestHead | None:
        """The next request's head, once it is complete.

        Raises:
            MalformedRequest: what stands there is none.
            HeadTooLarge: it is longer than any may be.
        """
        return self._head.take(self.buffer)

    def begin_body(self, length: int | None) -> None:
        """The body of the head that was just taken is next.

        Args:
            length: in bytes; None: it comes in chunks.
        """
        reader = body_reader(length)
        if reader.done:
            self._deadline = _NEVER
        else:
            self._body = reader
            self._body_seconds_left = self._limits.body_seconds
            self.expect(self._limits.body_seconds)

    def take_body(self) -> bytes:
        """What has come of the body; with the last of it `in_body` ends. All that comes gives the client time for the rest.

        Raises:
            MalformedRequest: as of `BodyReader.take`.
        """
        assert self._body is not None
        data = self._body.take(self.buffer)
        if self._body.done:
            self._body = None
            self._deadline = _NEVER
        else:
            now = self._clock()
            left = self._deadline - now + len(data) / self._limits.body_rate
            self._body_seconds_left = min(left, self._limits.body_seconds)
            self._deadline = now + self._body_seconds_left
        return data

    def discard(self) -> None:
        """Forget what has come: no further request is read."""
        self.buffer.clear()
        self._body = None

    # --- reading on, and until when ---

    def hold(self) -> None:
        """Read no more for now: there is enough, and it is not the client that is slow."""
        self._deadline = _NEVER
        if self._reading:
            self._reading = False
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again, after `hold`; a body has the time that it had left."""
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
            if self.in_body:
                self.expect(self._body_seconds_left)

    def expect(self, seconds: float) -> None:
        """The client has this long for what comes next."""
        self._deadline = self._clock() + seconds

    def expect_nothing(self) -> None:
        """It has all the time in the world."""
        self._deadline = _NEVER

    def overdue(self, now: float) -> bool:
        """Whether what was expected did not come in time."""
        return now >= self._deadline

    def unfinished(self) -> RequestTimeout | None:
        """What to say of the request that was begun and did not come in time; None if none was begun."""
        if self.in_body:
            return RequestTimeout("The body of the request did not come in time.")
        return RequestTimeout("The head of the request did not come in time.") if self.buffer else None
