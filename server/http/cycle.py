"""One request and its answer, as ASGI: `receive` hands over the body, `send` writes the answer as the client's version has it."""

import asyncio
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from starlette.types import ASGIApp, Message, Scope

from server.errors import ApiError, InternalError
from server.http.answer import error_bytes

DIRECT_BODY = "headrace.direct_body"  # the scope's extension: a `DirectBody`
HIGH_WATER = 64 * 1024  # bytes of a body that wait for the application before no more are read
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_log = logging.getLogger("headrace.http")
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class Frame:
    """What is the same in many writes of one answer.

    Attributes:
        before, after: what stands around the part that differs.
        chunked: whether each write is a chunk of its own.
    """

    before: bytes
    after: bytes
    chunked: bool

    def filled(self, middle: bytes) -> bytes:
        """One write."""
        if not self.chunked:
            return b"%b%b%b" % (self.before, middle, self.after)
        size = len(self.before) + len(middle) + len(self.after)
        return b"%x\r\n%b%b%b\r\n" % (size, self.before, middle, self.after)


class Wire(Protocol):
    """What a cycle asks of its connection."""

    write_paused: bool

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every answer."""

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def framed(self, frame: Frame) -> Callable[[bytes], None]:
        """What sends this around what it is given."""

    async def drained(self) -> None:
        """Wait until the client has taken enough of what was written."""

    def resume_reading(self) -> None:
        """The application wants more of the body."""

    def answered(self) -> None:
        """The answer is complete."""

    def cut(self) -> None:
        """Close at once: what was begun cannot be finished."""


class DirectBody(Protocol):
    """A way for what is sent a thousand times a second: no coroutine of any middleware runs for it."""

    def takes_more(self) -> bool:
        """Whether more of the body can be written now, without waiting."""

    def write_more(self, data: bytes) -> None:
        """Write it; only if it takes more."""

    def framed(self, before: bytes, after: bytes) -> Callable[[bytes], None]:
        """What writes these around what it is given; to be asked for, and called, only if it takes more."""


class RequestCycle:
    """One request.

    Args:
        scope: of the request.
        wire: the connection.
        keep_alive: whether the connection goes on after it.
        expects_continue: whether the client waits for a word before it sends the body.
    """

    def __init__(self, scope: Scope, wire: Wire, keep_alive: bool, expects_continue: bool) -> None:
        self.keep_alive = keep_alive
        self.started = False  # the application has; the head is held back until it can go with some of the body
        self.complete = False
        self.disconnected = False
        self.body_complete = False
        scope["extensions"] = {DIRECT_BODY: self}
        self._scope = scope
        self._wire = wire
        self._expects_continue = expects_continue
        self._body = bytearray()
        self._arrived = asyncio.Event()
        self._head = b""
        self._bodiless = scope["method"] == "HEAD"
        self._chunked = False
        self._events = False
        self._left = -1  # bytes that Content-Length still promises; -1: it promises nothing

    async def run(self, app: ASGIApp) -> None:
        """Hand the request to the application; a failure that it lets out is logged and answered 500."""
        try:
            await app(self._scope, self.receive, self.send)
        except Exception:
            _log.exception("%s %r failed", self._scope["method"], self._scope["path"])
        if self.complete or self.disconnected:
            return
        if self.started:
            self._wire.cut()  # a neat end would make half an answer look like a whole one
        else:
            self.answer_error(InternalError("The server failed; see its log."))

    def answer_error(self, error: ApiError) -> None:
        """Answer in the application's place; for it, the client has left."""
        self.keep_alive = False
        self.disconnect()
        self._wire.write(error_bytes(error, self._wire.default_headers, bodiless=self._bodiless))
        self.started = self.complete = True
        self._wire.answered()

    # --- the request ---

    def feed(self, data: bytes) -> bool:
        """More of the body; whether that is enough for now."""
        if self.complete or self.disconnected:
            return False
        self._body += data
        self._arrived.set()
        return len(self._body) > HIGH_WATER

    def end_body(self) -> None:
        """The body is complete."""
        self.body_complete = True
        self._arrived.set()

    def disconnect(self) -> None:
        """The client has left."""
        self.disconnected = True
        self._arrived.set()

    async def receive(self) -> Message:
        """ASGI."""
        if self._expects_continue and not self.started and not self.disconnected:
            self._expects_continue = False
            self._wire.write(CONTINUE)
        if not self.disconnected and not self.complete:
            self._wire.resume_reading()
            await self._arrived.wait()
            self._arrived.clear()
        if self.disconnected or self.complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), bytearray()
        return {"type": "http.request", "body": body, "more_body": not self.body_complete}

    # --- the answer ---

    async def send(self, message: Message) -> None:
        """ASGI."""
        if self._wire.write_paused and not self.disconnected:
            await self._wire.drained()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.started:
            self._start(message)
        elif message["type"] == "http.response.body" and self.started and not self.complete:
            self._write(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"an application must not send {message['type']!r} now")

    def takes_more(self) -> bool:
        """Whether `write_more` may be called: an answer has begun, and its client is there and takes what is written."""
        return self.started and not (self._wire.write_paused or self.disconnected or self.complete)

    def write_more(self, data: bytes) -> None:
        """More of the answer, past all that stands between the application and here."""
        self._write(data, more=True)

    def framed(self, before: bytes, after: bytes) -> Callable[[bytes], None]:
        """The same for what is given, with these around it."""
        if self._bodiless or self._head or self._left >= 0:
            return lambda middle: self._write(before + middle + after, more=True)
        return self._wire.framed(Frame(before, after, self._chunked))

    def _start(self, message: Message) -> None:
        status: int = message["status"]
        headers = [*self._wire.default_headers, *((name.lower(), value) for name, value in message.get("headers", ()))]
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        for name, value in headers:
            if _BAD_VALUE.search(value):
                raise RuntimeError(f"the header {name!r} has a control character in its value")
            lines.append(b"%b: %b\r\n" % (name, value))
        fields = dict(headers)
        if b"close" in fields.get(b"connection", b"").lower():
            self.keep_alive = False
        self._bodiless = self._bodiless or status in (204, 304)
        self._events = fields.get(b"content-type", b"").startswith(b"text/event-stream")
        if b"content-length" in fields:
            self._left = int(fields[b"content-length"])
        elif not self._bodiless and self._scope["http_version"] == "1.1":
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        elif not self._bodiless:
            self.keep_alive = False  # to HTTP/1.0, the end of the connection is the end of the answer
        if not self.body_complete:
            self.keep_alive = False  # a client that is answered early does not wait for the end of its request
        if not self.keep_alive and b"connection" not in fields:
            lines.append(b"connection: close\r\n")
        self._head = b"".join((*lines, b"\r\n"))
        self.started = True

    def _write(self, body: bytes, more: bool) -> None:
        if self._bodiless:
            data = b""
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        else:
            data = body
            self._count(len(body), more)
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            self._wire.write(data)
        if not more:
            self.complete = True
            self._arrived.set()
            self._wire.answered()

    def _count(self, size: int, more: bool) -> None:
        if self._left < 0:
            return
        self._left -= size
        if self._left < 0 or (self._left and not more):
            raise RuntimeError("the answer's length is not what its Content-Length says")

    def probe(self) -> None:
        """Write something that means nothing. A client that has left answers with a reset, one that has only stopped sending does
        not."""
        if not self.started or self._head:
            if self._scope["http_version"] == "1.1":  # 1.0 knows no interim answers
                self._wire.write(CONTINUE)
        elif self._events and not self.complete:
            self._wire.write(b"3\r\n:\n\n\r\n" if self._chunked else b":\n\n")
