"""TLS in front of a connection.

uvicorn would have the event loop do it before a connection is made: clients that begin a handshake and never end it would then
stand in no books, and the limit on open connections would not hold for them.
"""

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from server.errors import ApiError
from server.http.certificate import ServerCertificate
from server.http.connection import HttpConnection
from server.http.connections import Connections
from server.http.host import WebHost

_log = logging.getLogger("headrace.http")


class TlsHandshake(asyncio.Protocol):
    """A connection until its handshake has ended: it waits for its client, with a place in the books and a deadline.

    Args:
        connection: what is made of it then.
        certificate: the server's.
        connections: the books.
    """

    def __init__(self, connection: HttpConnection, certificate: ServerCertificate, connections: Connections) -> None:
        self.address = ""
        self._connection = connection
        self._certificate = certificate
        self._books = connections
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come. Its socket goes on to a transport that speaks TLS, before anything is read from it here."""
        plain = cast(asyncio.Transport, transport)
        client = get_remote_addr(plain)
        self.address = client[0] if client else ""
        if self._books.admit(self) is None:  # else: no word would be understood
            try:
                own = socket.socket(fileno=os.dup(plain.get_extra_info("socket").fileno()))
            except OSError as error:  # there are no descriptors left
                self._books.remove(self)
                _log.warning("%s was not let in: %s", self.address, error.strerror)
            else:
                own.setblocking(False)
                self._task = asyncio.get_running_loop().create_task(self._shake_hands(own))
        plain.abort()

    async def _shake_hands(self, own: socket.socket) -> None:
        limits = self._books.limits
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._go_on,
                own,
                ssl=self._certificate.context,
                ssl_handshake_timeout=limits.head_seconds,
                ssl_shutdown_timeout=limits.linger_seconds,
            )
        except OSError as error:  # an SSLError, a TimeoutError, a client that leaves
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                _say_once(self.address)
        finally:
            self._books.remove(self)

    def _go_on(self) -> HttpConnection:
        self._connection.follow(self)
        return self._connection

    # --- what the books ask for ---

    def give_way(self, error: ApiError) -> None:
        """Close: another one needs the place."""
        self.cut()

    def check(self, now: float) -> None:
        """The event loop's own clock ends a handshake."""

    def end_receiving(self, error: ApiError) -> None:
        """There is no request yet."""

    def cut(self) -> None:
        """Close at once."""
        self._books.remove(self)
        if self._task is not None:
            self._task.cancel()


@lru_cache(maxsize=256)
def _say_once(address: str) -> None:
    _log.warning("%s speaks plain HTTP, and here TLS is spoken: its URL has to be https://", address)


def protocol_factory(
    connections: Connections, certificate: ServerCertificate | None = None
) -> Callable[..., HttpConnection | TlsHandshake]:
    """What uvicorn makes its connections with; with a certificate they speak TLS."""

    def make(
        config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: object = None
    ) -> HttpConnection | TlsHandshake:
        connection = HttpConnection(WebHost(config, server_state, app_state), connections)
        return connection if certificate is None else TlsHandshake(connection, certificate, connections)

    return make
