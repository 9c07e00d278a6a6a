"""Sending an answer while watching the client: a stream as server-sent events, or one JSON body.

Nothing more is computed for a client that has left. The response starts with the first output, so that whatever goes wrong
before it has its own HTTP status. If that takes long, the stream starts with comments, and has them wherever it pauses: they keep
proxies from giving up.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.errors import ApiError, InternalError
from server.http.cycle import DIRECT_BODY, DirectBody
from server.stream.generation import Delta, Generation, scored_tokens
from server.telemetry.lifetime import Exchange
from server.to_thread import INLINE_SCORED_TOKENS, to_thread_if_larger

KEEP_ALIVE_SECONDS = 10.0
KEEP_ALIVE = b": waiting\n\n"
CLIENT_GONE = 499  # nobody reads it; the access log does
EVENT_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T")
_log = logging.getLogger("headrace.http")


async def unless_disconnected(work: Coroutine[Any, Any, T], receive: Receive) -> T | None:
    """The result of `work`, or None if the client leaves first; the work has then been cancelled and has ended.

    The request's body must have been read: only the disconnect is left for `receive` to report.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await cancelled(task, gone)


class Writer(Protocol):
    """How deltas are written as events.

    Attributes:
        around_text: what stands before and behind the JSON of a text in the event of what an only choice gained, if that is a
            text and nothing else, neither its first nor its last. None: more is said with a text, by `write`.
    """

    around_text: Callable[[], tuple[bytes, bytes]] | None

    def write(self, deltas: Iterable[Delta]) -> bytes:
        """The events of one step, for one write; may be empty."""

    def end(self) -> bytes:
        """What follows the last step."""

    def failed(self, error: ApiError) -> bytes:
        """What ends the stream in place of the rest, where something went wrong."""


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream in which something went wrong."""
    return b"data: " + msgspec.json.encode(error.body()) + b"\n\n"


class EventStream(Response):
    """The streamed answer of one generation. `start` decides, calling it sends; both watch the client."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, writer: Writer, exchange: Exchange, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**EVENT_HEADERS, **headers})
        del self.headers["content-length"]
        self._generation = generation
        self._writer = writer
        self._exchange = exchange
        self._steps = generation.steps()
        self._first: asyncio.Task[list[Delta] | None] | None = None
        self._writes = 0
        self._direct: DirectBody | None = None  # where the server lends one
        self.ready: Callable[[], bool] = lambda: False  # whether deltas can be sent at once
        self._write_middle: Callable[[bytes], None] | None = None  # of an event, once there was a text
        self._around_bytes = 0

    async def start(self, receive: Receive) -> bool:
        """Wait for the first output, or until a keep-alive is due; False if the client has left.

        Raises:
            ApiError: the request ended before it produced anything.
        """
        self._first = asyncio.create_task(_next(self._steps))
        gone = asyncio.create_task(disconnect(receive))
        started = False
        try:
            await asyncio.wait({self._first, gone}, timeout=KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if self._first.done():
                self._first.result()
            started = not gone.done()
        finally:
            await cancelled(gone)
            if not started:
                await self._close()
        return started

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; it ends when the client leaves."""
        self._direct = scope.get("extensions", {}).get(DIRECT_BODY)
        if self._direct is not None:
            self.ready = self._direct.takes_more
        try:
            await unless_disconnected(self._send(send), receive)
        finally:
            await self._close()

    def write(self, deltas: list[Delta]) -> None:
        """Send what one step brought, at once."""
        self._write_now(self._writer.write(deltas))

    @property
    def texts(self) -> bool:
        """Whether it takes a text with which no more is said."""
        return self._writer.around_text is not None

    def write_quoted(self, text: bytes) -> None:
        """Send the text that an only choice gained, as JSON, at once."""
        (self._write_middle or self._framed())(text)
        self._exchange.sent += self._around_bytes + len(text)

    def _framed(self) -> Callable[[bytes], None]:
        assert self._direct is not None and self._writer.around_text is not None, "see `ready` and `texts`"
        before, after = self._writer.around_text()
        self._around_bytes = len(before) + len(after)
        self._write_middle = self._direct.framed(before, after)
        return self._write_middle

    def _write_now(self, data: bytes) -> None:
        if data and self._direct is not None:
            self._direct.write_more(data)
            self._exchange.sent += len(data)

    async def _close(self) -> None:
        if self._first is not None:
            await cancelled(self._first)
        await self._steps.aclose()
        self._generation.close()

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            pulse = asyncio.create_task(self._keep_alive(send))
            self._generation.attend(self)
            try:
                async with contextlib.aclosing(self._events()) as events:
                    async for data in events:
                        await send({"type": "http.response.body", "body": data, "more_body": True})
                        self._writes += 1
            finally:
                await cancelled(pulse)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # what a server may raise if the client has left
            _log.debug("the client of %s left", self._generation.job.id)

    async def _keep_alive(self, send: Send) -> None:
        """A comment whenever nothing was written for long. One look at a time, so that tokens cost nothing more."""
        while True:
            before = self._writes, self._exchange.sent
            await asyncio.sleep(KEEP_ALIVE_SECONDS)
            if (self._writes, self._exchange.sent) == before:
                await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    async def _events(self) -> AsyncGenerator[bytes, None]:
        try:
            async for deltas in self._all_steps():
                data = await self._written(deltas) if deltas else KEEP_ALIVE
                if data:
                    yield data
            yield self._writer.end()
        except ApiError as error:
            self._exchange.error_code = error.code
            yield self._writer.failed(error)
        except Exception:
            _log.exception("streaming %s failed", self._generation.job.id)
            self._exchange.error_code = InternalError.code
            yield self._writer.failed(InternalError("The server failed; its log has the cause."))

    async def _written(self, deltas: list[Delta]) -> bytes:
        return await to_thread_if_larger(
            scored_tokens(deltas), INLINE_SCORED_TOKENS, lambda: self._writer.write(deltas)
        )

    async def _all_steps(self) -> AsyncGenerator[list[Delta], None]:
        """The generation's steps; an empty one first if the first is late: the answer's head goes out with a comment."""
        first = self._first
        assert first is not None, "await start() before sending"
        if not first.done():
            yield []
        deltas = await first
        if deltas is not None:
            yield deltas
        async for deltas in self._steps:
            yield deltas


async def _next(steps: AsyncIterator[list[Delta]]) -> list[Delta] | None:
    return await anext(steps, None)


async def disconnect(receive: Receive) -> None:
    """Wait until the client leaves. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """Cancel these and wait until they have ended; what they raise is ignored."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
