"""The listening socket, bound before anything slow happens: a port in use is noticed at once, and `/live` answers early."""

import errno
import socket


class ListenError(Exception):
    """The address cannot be listened on: a sentence that names the cause and the fix."""


def listen(host: str, port: int, backlog: int = 2048) -> socket.socket:
    """A socket that listens on the first address that `host` resolves to; port 0 picks a free one.

    Raises:
        ListenError: the port is in use or not allowed, or the host is unknown.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ListenError(
            f"The host {host!r} is unknown ({error.strerror}); give an address of this machine."
        ) from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ListenError(f"--host {host} is no address of this machine; 0.0.0.0 is all of them.") from None
        raise ListenError(f"{host}:{port}: {error.strerror}. Stop what uses it, or choose another --port.") from None
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket) -> str:
    """The URL at which a client on this machine reaches it. A wildcard address is shown as localhost."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
