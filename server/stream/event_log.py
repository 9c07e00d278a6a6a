"""The events of one answer, kept for whoever follows it: while it is computed and after, from wherever they like."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import EventsDropped
from server.stream import sse
from server.stream.event_buffer import EventBuffer, size_of

WRITE_BYTES = 64 * 1024  # of what a follower has missed, that are written to it at once
_log = logging.getLogger("headrace.http")


class EventLog:
    """Whole events in order, numbered from 0. All calls belong to the event loop's thread.

    Args:
        most: bytes that are kept; beyond, the oldest events give way.

    Attributes:
        complete: no event will come any more.
    """

    def __init__(self, most: int) -> None:
        self.complete = False
        self._most = most
        self._buffer = EventBuffer(ids=False)  # whose numbers are one more than ours
        self._news = asyncio.Event()

    @property
    def size(self) -> int:
        """Of what is kept, in bytes."""
        return self._buffer.size

    @property
    def last(self) -> int:
        """Number of the newest event; -1 before the first."""
        return self._buffer.last - 1

    def add(self, events: Iterable[bytes]) -> None:
        """Add the next events."""
        for event in events:
            while self._buffer.size and self._buffer.size + size_of(event) > self._most:
                self._buffer.drop_oldest()
            self._buffer.append(event)
        self._tell()

    def end(self) -> None:
        """There are no more."""
        self.complete = True
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def check(self, after: int) -> None:
        """Refuse to follow behind the event of this number if the next one is kept no longer.

        Raises:
            EventsDropped: names the oldest one that is.
        """
        if after + 1 < self._buffer.dropped:
            raise EventsDropped(
                f"The events behind {after} are not kept any more: the oldest is {self._buffer.dropped}, since at most "
                f"{self._most} bytes of a response are."
            )

    async def follow(self, after: int) -> AsyncGenerator[bytes, None]:
        """What comes behind the event of this number (-1: everything), with comments where nothing comes for long."""
        try:
            while True:
                self.check(after)
                news, complete = self._news, self.complete
                while after < self.last:
                    self.check(after)
                    data, reached = self._buffer.after(after + 1, WRITE_BYTES)
                    after = reached - 1
                    yield data
                if complete:
                    return
                if not await _in_time(news):
                    yield sse.KEEP_ALIVE
        except EventsDropped as error:
            yield sse.error_event(error)


async def _in_time(event: asyncio.Event) -> bool:
    """Whether the event is set before a comment is due."""
    try:
        async with asyncio.timeout(sse.KEEP_ALIVE_SECONDS):
            await event.wait()
    except TimeoutError:
        return False
    return True


class FollowedAnswer(Response):
    """The events of a log behind the one of a number, as server-sent events. `on_end` is called when its client gets no more."""

    media_type = "text/event-stream"

    def __init__(
        self, log: EventLog, after: int, headers: Mapping[str, str], on_end: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(headers={**sse.EVENT_HEADERS, **headers})
        del self.headers["content-length"]
        self._events, self._after, self._on_end = log, after, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the log ends or the client leaves."""
        try:
            await sse.unless_disconnected(self._send(send), receive)
        finally:
            self._on_end()

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with contextlib.aclosing(self._events.follow(self._after)) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # what a server may raise if the client has left
            _log.debug("a follower left")
