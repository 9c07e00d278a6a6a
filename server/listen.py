"""Listening sockets, made before anything slow happens: an address in use is noticed at once, and `/live` answers early."""

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

from configs.settings import Settings
from server.http.certificate import CertificateError, ServerCertificate

_BACKLOG = 2048
_LOOPBACKS = ("127.0.0.1", "::1")  # a client that looks up `localhost` may try either first
_MODES = {"user": 0o600, "group": 0o660, "all": 0o666}
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class ListenError(Exception):
    """The address cannot be listened on: a sentence that names the cause and the fix."""


@dataclass(frozen=True, slots=True)
class Listeners:
    """Sockets of one server, as many as its address has.

    Attributes:
        sockets: they listen, and do not block.
        authority: host and port at which a client on this machine reaches them; `localhost` for a Unix socket.
        uds: the file of a Unix socket, and which one it is.
        certificate: with which TLS is spoken on them; None: it is not.
    """

    sockets: tuple[socket.socket, ...]
    authority: str
    uds: tuple[str, tuple[int, int]] | None = None
    certificate: ServerCertificate | None = None

    @property
    def url(self) -> str:
        """The URL at which a client on this machine reaches them."""
        return f"{'http' if self.certificate is None else 'https'}://{self.authority}"

    @property
    def port(self) -> int:
        """Of TCP."""
        port: int = self.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Listen no more, and remove a Unix socket's file unless it is another server's by now."""
        for each in self.sockets:
            each.close()
        if self.uds is not None:
            path, identity = self.uds
            with contextlib.suppress(OSError):
                if _identity(path) == identity:
                    os.unlink(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listeners_of(settings: Settings) -> Listeners:
    """What these settings say to listen on.

    Raises:
        ListenError: it cannot be done.
    """
    try:
        certificate = None if settings.tls_cert is None else ServerCertificate(settings.tls_cert, settings.tls_key)
    except CertificateError as error:
        raise ListenError(str(error)) from None
    if settings.uds is not None:
        listeners = listen_unix(settings.uds, _MODES[settings.uds_access])
    else:
        listeners = listen(settings.host, settings.port)
    return replace(listeners, certificate=certificate)


def listen(host: str, port: int) -> Listeners:
    """Listen on the first address that `host` resolves to; port 0 picks a free one.

    `localhost` is both loopback addresses, or the one that the machine has. `::` takes IPv4 too.

    Raises:
        ListenError: the port is in use or not allowed, or the host is unknown.
    """
    sockets: list[socket.socket] = []
    try:
        for address in _LOOPBACKS if host == "localhost" else (host,):
            try:
                sockets.append(_bound(address, port))
            except OSError as error:
                if sockets and error.errno in _ABSENT:
                    continue
                raise _refusal(address, port, error) from None
            port = sockets[0].getsockname()[1]
    except ListenError:
        for each in sockets:
            each.close()
        raise
    shown, port = sockets[0].getsockname()[:2]
    shown = "localhost" if shown in ("0.0.0.0", "::") or host == "localhost" else shown
    return Listeners(tuple(sockets), f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}")


def listen_unix(path: str, mode: int) -> Listeners:
    """Listen on a Unix socket with these permissions. A file of a server that is no more is replaced.

    Raises:
        ListenError: a server listens there, another kind of file is there, or none can be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        listener.bind(path)
        os.chmod(path, mode)
        _start(listener)
        return Listeners((listener,), "localhost", (os.path.abspath(path), _identity(path)))
    except OSError as error:
        listener.close()
        cause = error.strerror or str(error)
        raise ListenError(f"--uds {path}: {cause}. Give a path of at most 107 bytes in a folder of yours.") from None
    except ListenError:
        listener.close()
        raise


def _identity(path: str) -> tuple[int, int]:
    """Of a file. Inodes are used again."""
    status = os.lstat(path)
    return status.st_ino, status.st_mtime_ns


def _bound(address: str, port: int) -> socket.socket:
    family, kind, protocol, _, resolved = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if resolved[0] == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(resolved)
        _start(listener)
    except OSError:
        listener.close()
        raise
    return listener


def _start(listener: socket.socket) -> None:
    listener.listen(_BACKLOG)  # nobody can connect before
    listener.setblocking(False)


def _refusal(host: str, port: int, error: OSError) -> ListenError:
    if isinstance(error, socket.gaierror):
        return ListenError(f"The host {host!r} is unknown ({error.strerror}); give an address of this machine.")
    if error.errno in _ABSENT:
        return ListenError(f"--host {host} is no address of this machine; 0.0.0.0 is all of them.")
    return ListenError(f"{host}:{port}: {error.strerror}. Stop what uses it, or choose another --port.")


def _remove_stale(path: str) -> None:
    """Remove a socket on which nobody listens.

    Raises:
        ListenError: somebody does, or it is no socket.
    """
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise ListenError(f"--uds {path} is there already and is no socket: give another path.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except TimeoutError:  # its queue is full
            pass
    raise ListenError(f"--uds {path}: a server listens there already. Stop it, or give another path.")
