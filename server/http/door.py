"""What has the clients' connections: uvicorn's server with our connections, or HTTP processes (`server/fronts/`)."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import uvicorn

from configs.settings import Settings
from server.errors import ApiError
from server.http.certificate import ServerCertificate
from server.http.connections import Connections
from server.http.tls import protocol_factory

_LOOPBACK = ("127.0.0.0/8", "::1", "::ffff:127.0.0.0/104")


class Door(Protocol):
    """As a server sees it."""

    async def serve(self) -> None:
        """Until `stop`, or until connections can be served no longer."""

    def stop(self) -> None:
        """Accept no more, and end when what was answered is written."""

    def end_receiving(self, error: ApiError) -> None:
        """Refuse the requests whose bodies are still on their way."""

    def cut(self) -> None:
        """Close all connections at once."""


class WebServer(uvicorn.Server):
    """uvicorn without its signal handlers: what a signal means is decided in `Serving`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the process's handlers as they are."""
        yield


class OwnDoor:
    """The connections of a server that has them itself.

    Args:
        app: the application.
        connections: the books.
        settings: the server's.
        sockets: they listen.
        certificate: with which connections speak TLS.
    """

    def __init__(
        self,
        app: object,
        connections: Connections,
        settings: Settings,
        sockets: Sequence[socket.socket],
        certificate: ServerCertificate | None = None,
    ) -> None:
        self.web = WebServer(web_config(app, settings, protocol_factory(connections, certificate)))
        self._connections = connections
        self._sockets = list(sockets)
        self._certificate = certificate

    async def serve(self) -> None:
        """See `Door`. A certificate is taken up anew meanwhile."""
        watch = None if self._certificate is None else asyncio.create_task(self._certificate.watch())
        try:
            await self.web.serve(sockets=self._sockets)
        finally:
            if watch is not None:
                watch.cancel()

    def stop(self) -> None:
        """See `Door`."""
        self.web.should_exit = True

    def end_receiving(self, error: ApiError) -> None:
        """See `Door`."""
        self._connections.end_receiving(error)

    def cut(self) -> None:
        """See `Door`."""
        self._connections.cut()


def web_config(app: object, settings: Settings, protocol: Any = asyncio.Protocol) -> uvicorn.Config:
    """The web server's settings: its own logs, signals and lifespan protocol stay out of the way.

    Args:
        app: the application.
        settings: those of proxies.
        protocol: makes connections, where this process has them.
    """
    anybody = settings.uds is not None or "*" in settings.forwarded_allow_ips
    return uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn's ASGI types and starlette's name the same thing
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        root_path=settings.root_path,
        forwarded_allow_ips="*" if anybody else [*_LOOPBACK, *settings.forwarded_allow_ips],
        timeout_graceful_shutdown=1,
    )
