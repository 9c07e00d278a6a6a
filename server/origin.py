"""Which web pages may use this server: a page that a user happens to visit must not make a local server compute.

A browser says which page a request is from (`Origin`), and under which name it found the server (`Host`). A page of another
origin is refused unless CORS allows it. A page whose own name has come to mean this machine (DNS rebinding) is of one origin with
the server, but not under a name of the server's: names are checked where neither a key nor a network stands in between.
"""

import ipaddress
import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.settings import Settings
from server.errors import ApiError, ForbiddenHost, ForbiddenOrigin, error_response
from server.middleware import RequestTest

_ALL = "*"
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:]+)(?::\d*)?")
_DEFAULT_PORTS = (":80", ":443")


class OriginMiddleware:
    """Refuses requests of foreign pages and for foreign names, whatever their method and type.

    Those that are `under_any_name` may name any host: a probe finds a server by its address, and its answer tells next to nothing.
    """

    def __init__(self, app: ASGIApp, settings: Settings, under_any_name: RequestTest) -> None:
        self._app = app
        self._under_any_name = under_any_name
        self._origins = {origin.lower().rstrip("/") for origin in settings.cors_origins}
        self._hosts = {host.lower() for host in settings.allowed_hosts}
        exposed = not settings.keyed and settings.uds is None and is_loopback(settings.host)
        self._checks_host = (exposed or bool(self._hosts)) and _ALL not in self._hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await error_response(error, scope)(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        if self._checks_host and host and not self._knows(_without_port(host)) and not self._under_any_name(scope):
            return ForbiddenHost(
                f"This server is not served under the name {host[:100]!r}; --allowed-hosts adds one (`*`: any)."
            )
        for origin in headers.getlist("origin"):
            if not self._allows(origin.lower(), host):
                return ForbiddenOrigin(
                    f"Pages of {origin[:100]!r} may not use this server; --cors-origins adds an origin (`*`: any)."
                )
        return None

    def _knows(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts

    def _allows(self, origin: str, host: str) -> bool:
        if _ALL in self._origins or origin in self._origins:
            return True
        scheme, slashes, authority = origin.partition("://")
        return scheme in ("http", "https") and bool(slashes) and _plain(authority) == _plain(host) != ""


def is_loopback(name: str) -> bool:
    """Whether the name or address is this machine's, wherever it is looked up."""
    name = name.strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    match = _HOST.fullmatch(host)
    return match[1] if match else host


def _plain(authority: str) -> str:
    """Without a port that goes without saying."""
    for port in _DEFAULT_PORTS:
        authority = authority.removesuffix(port)
    return authority
