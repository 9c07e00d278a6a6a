"""HTTP/1.1 as a load generator needs it: a socket's bytes are stamped where they arrive, and parsed no further than the frame.

What belongs here: connections, framing, the clock. What does not: events, JSON, retries, redirects, proxies. A failed request
is a result, so nothing is tried twice. No task wakes for a piece of a body: a stream of 20 events costs half as much as with
aiohttp's client, and a 25th of what it costs with httpx's.
"""

import asyncio
import socket
import ssl
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from loadtest.report.records import ErrorClass

clock = time.perf_counter
_IDLE_SECONDS = 2.0  # servers close idle connections after 5 s or more; one about to be closed is not used


@dataclass(slots=True, eq=False)
class HttpExchange:
    """One request and what came back; times are those of `clock`.

    Attributes:
        payload: the request's bytes, head and body; emptied once written.
        done: called once, when the exchange has ended.
        chunk_times, chunk_ends: when each piece of the body arrived, and the offset in `body` where it ends.
        error, detail: set if no complete answer came.
        stream: the answer's id, if the server says that it can be resumed.
        resumed: its connection broke, and another goes on with the answer.
        arrived: called after each piece of the body, with its size.
    """

    payload: bytes
    sent: float
    done: Callable[["HttpExchange"], None]
    connected: float | None = None
    headers: float | None = None
    status: int | None = None
    body: bytearray = field(default_factory=bytearray)
    chunk_times: "array[float]" = field(default_factory=lambda: array("d"))
    chunk_ends: "array[int]" = field(default_factory=lambda: array("q"))
    finished: float | None = None
    error: ErrorClass | None = None
    detail: str | None = None
    connection: "Connection | None" = None
    stream: str | None = None
    resumed: bool = False
    arrived: Callable[["HttpExchange", int], None] | None = None

    @property
    def last_heard(self) -> float:
        """When the server last sent something, or when the request left."""
        return self.chunk_times[-1] if self.chunk_times else self.headers or self.sent

    def answered(self, at: float, status: int) -> None:
        """The head of an answer came. If it goes on with another, that one's stays, unless it cannot go on; a 204 says that
        nothing was left."""
        if not self.resumed:
            self.headers, self.status = at, status
        elif status not in (200, 204):
            self.status = status
            self.cut_back(0)

    def cut_back(self, end: int) -> None:
        """Keep the body up to this offset alone."""
        del self.body[end:]
        at = 0.0
        while self.chunk_ends and self.chunk_ends[-1] > end:
            self.chunk_ends.pop()
            at = self.chunk_times.pop()
        if end > (self.chunk_ends[-1] if self.chunk_ends else 0):
            self.chunk_ends.append(end)
            self.chunk_times.append(at)

    def end(self, at: float, error: ErrorClass | None = None, detail: str | None = None) -> None:
        """End the exchange at time `at`; only the first call counts."""
        if self.finished is None:
            self.finished, self.error, self.detail = at, error, detail
            self.connection = None
            self.done(self)


class Connection(asyncio.Protocol):
    """One connection; it carries one exchange at a time."""

    def __init__(self, pool: "ConnectionPool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._exchange: HttpExchange | None = None
        self._framed = False
        self._now = 0.0
        self.idle_since = 0.0

    def carry(self, exchange: HttpExchange) -> None:
        """Write the request now. The connection must be open and idle."""
        assert self._transport is not None and self._exchange is None
        self._exchange, exchange.connection = exchange, self
        self._framed = False
        self._transport.write(exchange.payload)
        exchange.payload = b""

    def drop(self) -> None:
        """Close at once; the server sees that its client has left."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio when the connection is open."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with each piece received: stamp it, then parse it."""
        self._now = clock()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(ErrorClass.STREAM, f"not HTTP: {error}")
            self.drop()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by asyncio when the connection is closed, which also ends a body that has neither a length nor chunks."""
        self._pool.forget(self)
        self._now = clock()
        exchange = self._exchange
        if exchange is None:
            return
        if exchange.headers is None:
            self._end(ErrorClass.STREAM, f"the connection closed without an answer{f': {error}' if error else ''}")
        elif self._framed or error is not None:
            self._end(ErrorClass.STREAM, f"the connection closed inside the answer{f': {error}' if error else ''}")
        else:
            self._end(None, None)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser for each header: notes whether the body says where it ends, and whether it can be resumed."""
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._framed = True
        elif name == b"x-stream-id" and self._exchange is not None:
            self._exchange.stream = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Called by the parser after the last header."""
        if self._exchange is not None:
            self._exchange.answered(self._now, self._parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        """Called by the parser for each piece of the body; pieces of one read count as one."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.body += data
        if exchange.chunk_times and exchange.chunk_times[-1] == self._now:
            exchange.chunk_ends[-1] = len(exchange.body)
        else:
            exchange.chunk_times.append(self._now)
            exchange.chunk_ends.append(len(exchange.body))
        if exchange.arrived is not None:
            exchange.arrived(exchange, len(data))

    def on_message_complete(self) -> None:
        """Called by the parser at the end of the answer: the connection is kept or closed, as the server says."""
        keep = self._parser.should_keep_alive()
        if self._exchange is None:
            return
        if (
            100 <= self._parser.get_status_code() < 200
        ):  # `100 Continue`, `103 Early Hints`: the answer is still to come
            self._exchange.headers = self._exchange.status = None
            self._framed = False
            return
        self._end(None, None)
        if keep:
            self.idle_since = self._now
            self._pool.take_back(self)
        elif self._transport is not None:
            self._transport.close()

    def _end(self, error: ErrorClass | None, detail: str | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.end(self._now, error, detail)


class ConnectionPool:
    """Connections to one server; as many as there are exchanges, since an open loop must not wait for a free one.

    Args:
        url: only its scheme, host and port are used.
        connect_timeout: seconds.

    Raises:
        ValueError: the URL is not http or https.
    """

    def __init__(self, url: str, connect_timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not an http:// or https:// address")
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._timeout = connect_timeout
        self._address = self._host
        self._idle: deque[Connection] = deque()
        self._opening: set[asyncio.Task[None]] = set()
        self.opened = 0

    async def resolve(self) -> None:
        """Look the host up once, so that no connection waits for the lookup. Raises OSError if it has no address."""
        found = await asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        self._address = str(found[0][4][0])

    def send(self, exchange: HttpExchange) -> None:
        """Send now on an idle connection, or on a new one as soon as it is open. Never raises: failures end the exchange."""
        while self._idle:
            connection = self._idle.pop()
            if exchange.sent - connection.idle_since < _IDLE_SECONDS:
                exchange.connected = exchange.sent
                connection.carry(exchange)
                return
            connection.drop()
        self.open(exchange)

    def open(self, exchange: HttpExchange) -> None:
        """Send on a new connection as soon as it is open. Never raises: failures end the exchange."""
        task = asyncio.get_running_loop().create_task(self._open(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def take_back(self, connection: Connection) -> None:
        """Keep an idle connection for another exchange."""
        self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection from the idle ones."""
        if connection in self._idle:
            self._idle.remove(connection)

    async def close(self) -> None:
        """Stop opening connections, and close the idle ones."""
        for task in list(self._opening):
            task.cancel()
        while self._idle:
            self._idle.pop().drop()
        await asyncio.sleep(0)  # lets the transports report that they are closed

    async def _open(self, exchange: HttpExchange) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                _, connection = await loop.create_connection(
                    lambda: Connection(self),
                    self._address,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except TimeoutError:
            exchange.end(clock(), ErrorClass.CONNECT, f"no connection within {self._timeout:g} s")
        except OSError as error:
            exchange.end(clock(), ErrorClass.CONNECT, str(error))
        except Exception as error:  # a mistake of ours must not leave a request open forever
            exchange.end(clock(), ErrorClass.CLIENT, repr(error))
        else:
            self.opened += 1
            exchange.connected = clock()
            if exchange.finished is None:
                connection.carry(exchange)
            else:  # given up in the meantime
                connection.drop()
