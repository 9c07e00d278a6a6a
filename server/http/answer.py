"""An error as the bytes of a whole answer, for where no application is asked."""

import json
from collections.abc import Sequence
from http import HTTPStatus

from server.errors import ApiError


def error_bytes(error: ApiError, headers: Sequence[tuple[bytes, bytes]] = (), *, bodiless: bool = False) -> bytes:
    """Status, headers and body; the connection closes after it. `bodiless`: the answer to a HEAD request."""
    body = json.dumps(error.body()).encode()
    own = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **error.headers,
    }
    lines = [
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode(),
        *(name + b": " + value for name, value in headers),
        *(f"{name}: {value}".encode() for name, value in own.items()),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if bodiless else body)
