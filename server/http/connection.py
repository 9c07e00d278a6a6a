"""One connection: requests one after the other, each read, handed to the application and answered before the next is looked at.

It takes the place of uvicorn's own connections, which have no limits and no deadlines. A parser from a library would spare a
third of `head.py` and `body.py` and, as tried, give up some of what they refuse:

- httptools (llhttp) stops at an `Upgrade`, and the body after it is lost; what follows a chunked body it reads at once as the
  next request, past any limit of ours.
- h11 takes LF for CRLF, folded lines and lengths that are given twice. In heads a look at the bytes before it can refuse that.
  Between chunks it cannot, without finding the chunks: a CR or NUL in an extension and an LF at the end of trailers pass, and
  lines may have 64 KiB. Measured beside ours: a head 35 us for 19, a chunk of one byte 5.1 us for 0.8, a streamed token, framed
  and written, 4.4 us for 1.2 (one format and one write).

So h11 has another part: `tests/server/http/test_against_h11.py` holds what we read to what it reads.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, cast

from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from server.errors import ApiError, HeadTooLarge, MalformedRequest
from server.http.answer import error_bytes
from server.http.connections import Connections, Held
from server.http.cycle import Frame, Wire
from server.http.head import MAX_HEAD_BYTES, RequestHead
from server.http.intake import Intake
from server.http.write_watch import WriteWatch

_PROBE_SECONDS = (0.25, 5.0)  # the first probe of a client that has stopped sending, and the longest time between two


class Cycle(Protocol):
    """What a connection says of a request, and asks of it.

    Attributes:
        keep_alive: whether the connection goes on after it.
        started: whether it is being answered.
    """

    keep_alive: bool
    started: bool

    def feed(self, data: bytes) -> bool:
        """More of the body; whether that is enough for now."""

    def end_body(self) -> None:
        """The body is complete."""

    def disconnect(self) -> None:
        """The client has left."""

    def answer_error(self, error: ApiError) -> None:
        """Answer in the application's place; for it, the client has left."""

    def probe(self) -> None:
        """Write something that means nothing, to find out whether the client is there."""


class ConnectionHost(Protocol):
    """Whose connections these are."""

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every answer."""

    def enter(self, connection: "HttpConnection") -> None:
        """A connection is made."""

    def leave(self, connection: "HttpConnection") -> None:
        """It is lost. May be called again."""

    def begin(self, head: RequestHead, ends: dict[str, Any], wire: Wire) -> Cycle:
        """Have a request answered; its body is still to come.

        Args:
            head: of the request.
            ends: `client` and `server`, each an address and a port, and the `scheme`.
            wire: the connection.
        """


class HttpConnection(asyncio.BufferedProtocol):
    """One for every connection.

    Args:
        host: whose it is.
        connections: the books.
    """

    def __init__(self, host: ConnectionHost, connections: Connections) -> None:
        self.address = ""
        self.write_paused = False
        self._host = host
        self._books = connections
        self._limits = connections.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport = None  # type: ignore[assignment]  # until it is made
        self._ends: dict[str, Any] = {}
        self._intake: Intake = None  # type: ignore[assignment]  # until then
        self._watch: WriteWatch = None  # type: ignore[assignment]
        self._cycle: Cycle | None = None
        self._writable = asyncio.Event()
        self._half_closed = False  # the client sends no more, and may still read
        self._lingering = False  # answered, and closed but for what the client still sends
        self._linger_left = 0
        self._closed = False
        self._probe: asyncio.TimerHandle | None = None
        self._before: Held | None = None

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every answer."""
        return self._host.default_headers

    def follow(self, before: Held) -> None:
        """Take this one's place in the books, once the connection is made."""
        self._before = before

    # --- the transport's part ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)
        client = get_remote_addr(self._transport)
        self.address = client[0] if client else ""
        secured = self._transport.get_extra_info("sslcontext") is not None
        self._ends = {
            "client": client,
            "server": get_local_addr(self._transport),
            "scheme": "https" if secured else "http",
        }
        self._writable.set()
        self._intake = Intake(self._transport, self._limits, self._loop.time)
        self._watch = WriteWatch(self._transport, self._loop.time())
        self._host.enter(self)
        if self._before is not None:
            self._books.remove(self._before)
        error = self._books.admit(self)
        if error is None:
            self._intake.expect(self._limits.head_seconds)
        else:
            self._part(error)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go to: all connections read into the same place, one after the other."""
        return self._books.received

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes of a request have come, or of what nobody wants to hear."""
        if self._closed:
            return
        if self._lingering:
            self._linger_left -= nbytes
            if self._linger_left < 0:
                self.cut()
            return
        if self._cycle is None and not self._intake.buffer:
            self._intake.expect(self._limits.head_seconds)
        self._intake.buffer += self._books.received[:nbytes]
        self._go_on()

    def eof_received(self) -> bool:
        """The client sends no more. That it has left is one reading of it; that it waits for its answer is another (RFC 9112, 9.6),
        and only writing to it tells. True keeps the connection open."""
        if self._cycle is None and not self._lingering:
            self._go_on()
        if self._closed or self._lingering or self._cycle is None or self._intake.in_body:
            return False
        if (
            not self._transport.can_write_eof()
        ):  # over TLS, as the event loop does it, a connection ends in both directions
            return False
        self._half_closed = True
        self._probe_after(_PROBE_SECONDS[0])
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed, by whichever side."""
        self._end()
        self._books.remove(self)
        self._host.leave(self)
        if self._cycle is not None:
            self._cycle.disconnect()
        self._writable.set()
        self._intake.buffer.clear()

    def pause_writing(self) -> None:
        """The client does not take what is written."""
        self.write_paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self.write_paused = False
        self._writable.set()

    # --- requests ---

    def _go_on(self) -> None:
        """Read on in the buffer; refuse what stands there if it is no request."""
        try:
            self._advance()
        except (MalformedRequest, HeadTooLarge) as error:
            self._refuse(error)
        if self._half_closed and self._cycle is None and not self._lingering and not self._closed:
            self._close()

    def _advance(self) -> None:
        """Go on with what is in the buffer, until more bytes are needed or an answer is under way."""
        while self._intake.buffer and not self._lingering and not self._closed:
            if not self._advance_part():
                return

    def _advance_part(self) -> bool:
        """Take one head, or what is there of a body, out of the buffer; whether it was complete."""
        if self._cycle is not None:
            if self._intake.in_body:
                return self._advance_body(self._cycle)
            if len(self._intake.buffer) > MAX_HEAD_BYTES:
                self._intake.hold()  # the next request comes before the answer: it waits here, and more of it with the client
            return False
        head = self._intake.take_head()
        if head is None:
            return False
        self._begin(head)
        return True

    def _begin(self, head: RequestHead) -> None:
        self._cycle = cycle = self._host.begin(head, self._ends, self)
        self._intake.begin_body(head.length)
        if not self._intake.in_body:
            self._body_ended(cycle)

    def _advance_body(self, cycle: Cycle) -> bool:
        data = self._intake.take_body()
        enough = cycle.feed(data) if data else False
        if not self._intake.in_body:
            self._body_ended(cycle)
            return True
        if enough:
            self._intake.hold()
        return False

    def _body_ended(self, cycle: Cycle) -> None:
        self._books.works(self)
        cycle.end_body()

    # --- what a cycle asks for ---

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._watch.written += len(data)
        self._transport.write(data)

    def framed(self, frame: Frame) -> Callable[[bytes], None]:
        """What sends this around what it is given."""
        filled, write = frame.filled, self.write
        return lambda middle: write(filled(middle))

    async def drained(self) -> None:
        """Wait until the client has taken enough of what was written, or has left."""
        await self._writable.wait()

    def resume_reading(self) -> None:
        """The application, or the next request, wants more."""
        if not self._closed:
            self._intake.go_on()

    def answered(self) -> None:
        """The answer is complete: go on with the next request, or close."""
        cycle, self._cycle = self._cycle, None
        if self._closed or cycle is None:
            return
        if not cycle.keep_alive:
            self._linger() if self._intake.in_body or self._intake.buffer else self._close()
            return
        self._books.waits(self)
        self.resume_reading()
        begun = bool(self._intake.buffer)
        self._intake.expect(self._limits.head_seconds if begun else self._limits.idle_seconds)
        if begun:
            self._loop.call_soon(self._next)
        elif self._half_closed:
            self._close()

    def _next(self) -> None:
        if self._cycle is None and not self._closed:
            self._go_on()

    # --- ends ---

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error of the connection's own, and close; without a word where an answer has begun already."""
        if self._cycle is None:
            self.write(error_bytes(error, self.default_headers))
            self._linger()
        elif self._cycle.started:
            self.cut()
            return
        else:
            self._cycle.answer_error(error)
        self._books.on_refusal(error.code)

    def _linger(self) -> None:
        """Send no more, and listen a while: closing while the client sends would reset the connection, and the answer with it."""
        self._intake.discard()
        if self._half_closed or self._transport.is_closing():
            self._close()
            return
        self._lingering = True
        self._linger_left = self._limits.linger_bytes
        self._books.waits(self)
        self._intake.expect(self._limits.linger_seconds)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()

    def _close(self) -> None:
        """Close once everything is written; until then it has its place, and is watched like any that writes."""
        self._end()
        self._books.waits(self)
        self._transport.close()

    def cut(self) -> None:
        """Close at once."""
        self._end()
        self._books.remove(self)
        self._transport.abort()

    def _end(self) -> None:
        self._closed = True
        self._intake.expect_nothing()
        if self._probe is not None:
            self._probe.cancel()

    def give_way(self, error: ApiError) -> None:
        """Close, with the reason: the place is another's."""
        if self._closed or self._lingering or (self._cycle is not None and self._cycle.started):
            self.cut()
        else:
            self._part(error)

    def _part(self, error: ApiError) -> None:
        self._books.part(self)
        self._refuse(error)

    def end_receiving(self, error: ApiError) -> None:
        """Refuse the request whose body is still on its way, if one is."""
        if self._intake.in_body:
            self._refuse(error)

    def shutdown(self) -> None:
        """uvicorn's: the server stops."""
        if self._cycle is None:
            self._close()
        else:
            self._cycle.keep_alive = False

    # --- time ---

    def check(self, now: float) -> None:
        """End, if the client was too slow in sending or does not take what is written."""
        if self._watch.stalled_seconds(now) > self._limits.stall_seconds:
            self._books.on_refusal("client_stalled")
            self.cut()
        if self._closed or not self._intake.overdue(now):
            return
        if self._lingering:
            if self._watch.all_taken:  # otherwise it still takes its answer
                self.cut()
        elif (error := self._intake.unfinished()) is not None:
            self._refuse(error)
        else:
            self._close()

    def _probe_after(self, seconds: float) -> None:
        def probe() -> None:
            if self._cycle is not None and not self._closed:
                self._cycle.probe()
                self._probe_after(min(2 * seconds, _PROBE_SECONDS[1]))

        self._probe = self._loop.call_later(seconds, probe)
