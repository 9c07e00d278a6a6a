"""An HTTP process: connections are handed to it, it reads requests from them and writes answers to them."""

import asyncio
import itertools
import logging
import os
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from configs.settings import Settings
from server.errors import Unavailable
from server.fronts.link import FrontWire
from server.fronts.messages import (
    BEAT_SECONDS,
    AnswerEnded,
    ClientRefused,
    CutAll,
    CutConnection,
    EndReceiving,
    FrameAnnounced,
    FramesFilled,
    FrontBeat,
    FrontReady,
    ReadOn,
    RequestBegun,
    StopServing,
    ToFront,
    WriteBytes,
)
from server.fronts.remote_cycle import RemoteCycle
from server.http.certificate import ServerCertificate
from server.http.connection import HttpConnection
from server.http.connections import Connections
from server.http.cycle import Wire
from server.http.descriptors import limits_of
from server.http.head import RequestHead
from server.http.tls import TlsHandshake

_log = logging.getLogger("headrace.http")
_TAKE_AT_ONCE = 64  # new connections, before others have their turn
_LAST_WRITES_SECONDS = 1.0


class RemoteApplication:
    """The application, as connections here see it: it is at the other end of the link.

    Args:
        link: to the server's process.
        on_left: called when a connection is lost.
    """

    def __init__(self, link: FrontWire[ToFront], on_left: Callable[[], None]) -> None:
        self.connections: set[HttpConnection] = set()
        self._link = link
        self._on_left = on_left
        self._numbers = itertools.count()
        self._cycles: dict[int, RemoteCycle] = {}

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of answers that are given here."""
        return [(b"date", formatdate(usegmt=True).encode())]

    def enter(self, connection: HttpConnection) -> None:
        """A connection is made."""
        self.connections.add(connection)

    def leave(self, connection: HttpConnection) -> None:
        """It is lost."""
        self.connections.discard(connection)
        self._on_left()

    def begin(self, head: RequestHead, ends: dict[str, Any], wire: Wire) -> RemoteCycle:
        """Tell the server of a request."""
        number = next(self._numbers)
        self._link.send(RequestBegun(number, head, ends["client"], ends["server"], ends["scheme"]))
        cycle = self._cycles[number] = RemoteCycle(
            number, wire, self._link, self._cycles, keep_alive=head.keep_alive, bodiless=head.method == "HEAD"
        )
        return cycle

    def fill(self, middles: dict[int, bytes]) -> None:
        """What a step brought."""
        cycles = self._cycles
        for number, middle in middles.items():
            if (cycle := cycles.get(number)) is not None:  # else its client has left
                cycle.fill(middle)

    def heard(self, message: FrameAnnounced | WriteBytes | ReadOn | AnswerEnded | CutConnection) -> None:
        """What the server says of a request. That may cross the client's leaving."""
        cycle = self._cycles.get(message.number)
        if cycle is None:
            return
        match message:
            case WriteBytes():
                cycle.write(message.data, message.started)
            case FrameAnnounced():
                cycle.announce(message.frame)
            case ReadOn():
                cycle.read()
            case AnswerEnded():
                cycle.answered(message.keep_alive)
            case CutConnection():
                cycle.cut()


class HttpProcess:
    """The parts of one.

    Args:
        settings: the server's.
        link: the socket to the server's process.
        door: a socket from which connections come.

    Raises:
        CertificateError: TLS cannot be spoken.
    """

    def __init__(self, settings: Settings, link: socket.socket, door: socket.socket) -> None:
        cert = settings.tls_cert
        self._certificate = None if cert is None else ServerCertificate(cert, settings.tls_key)
        self._link_socket, self._door = link, door
        self._link = FrontWire[ToFront](ToFront, self._heard, self._server_gone)
        self._application = RemoteApplication(self._link, self._beat)
        limits = limits_of(settings, share=settings.http_processes)
        self._connections = Connections(limits, on_refusal=lambda code: self._link.send(ClientRefused(code)))
        self._taken = 0
        self._arriving = 0  # of these, those that are in no books yet
        self._stop = asyncio.Event()
        self._arrivals: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        """Until the server says so, or is gone."""
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: self._link, sock=self._link_socket)
        self._door.setblocking(False)
        loop.add_reader(self._door, self._take)
        self._link.send(FrontReady())
        watch = None if self._certificate is None else loop.create_task(self._certificate.watch())
        beats = loop.create_task(self._beats())
        await self._stop.wait()
        loop.remove_reader(self._door)
        beats.cancel()
        if watch is not None:
            watch.cancel()
        for connection in list(self._application.connections):
            connection.shutdown()
        end = loop.time() + _LAST_WRITES_SECONDS
        while self._application.connections and loop.time() < end:
            await asyncio.sleep(0.01)
        self._link.close()

    async def _beats(self) -> None:
        while True:
            self._beat()
            await asyncio.sleep(BEAT_SECONDS)

    def _beat(self) -> None:
        held = len(self._connections) + self._arriving
        self._link.send(FrontBeat(self._taken, held, time.process_time()))

    def _server_gone(self) -> None:
        """Nobody is left to answer to: the connections end with this process."""
        if not self._stop.is_set():
            os._exit(1)

    # --- connections ---

    def _take(self) -> None:
        """Take those that were handed over."""
        for _ in range(_TAKE_AT_ONCE):
            try:
                _, descriptors, _, _ = socket.recv_fds(self._door, 1, 1)
            except BlockingIOError:
                return
            if not descriptors:  # the server is gone, and the link says so, too
                asyncio.get_running_loop().remove_reader(self._door)
                return
            self._taken += 1
            self._arriving += 1
            connection = socket.socket(fileno=descriptors[0])
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._let_in(connection))
            self._arrivals.add(task)
            task.add_done_callback(self._arrivals.discard)

    async def _let_in(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        except OSError:  # it has left already
            connection.close()
        finally:
            self._arriving -= 1
            self._beat()

    def _protocol(self) -> HttpConnection | TlsHandshake:
        connection = HttpConnection(self._application, self._connections)
        if self._certificate is None:
            return connection
        return TlsHandshake(connection, self._certificate, self._connections)

    # --- what the server says ---

    def _heard(self, message: ToFront) -> None:
        match message:
            case FramesFilled():
                self._application.fill(message.middles)
            case FrameAnnounced() | WriteBytes() | ReadOn() | AnswerEnded() | CutConnection():
                self._application.heard(message)
            case EndReceiving():
                self._connections.end_receiving(Unavailable(message.reason))
            case CutAll():
                self._connections.cut()
            case StopServing():
                self._stop.set()
