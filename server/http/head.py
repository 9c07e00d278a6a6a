"""A request's head, from its bytes to an ASGI scope's parts (RFC 9112).

Strict: where two readers of the same bytes may disagree on where a request ends, one of them can be made to read a second
request out of the first one's body. Whatever allows that is refused, even where the RFC would let it pass.
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from server.errors import HeadTooLarge, MalformedRequest

MAX_HEAD_BYTES = 64 * 1024
MAX_LINE_BYTES = 16 * 1024
MAX_HEADERS = 128
MAX_BLANK_LINES = 8  # before a head; each starts the clock of a head anew
MAX_LENGTH_DIGITS = 18  # of Content-Length: more bytes than anybody has

Headers = list[tuple[bytes, bytes]]

_END = b"\r\n\r\n"
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_REQUEST_LINE = re.compile(rb"(%b) ([\x21-\x7e]+) HTTP/(\d)\.(\d)" % _TOKEN)
_HEADER = re.compile(rb"(%b):[ \t]*([\t\x20-\x7e\x80-\xff]*)" % _TOKEN)
_ABSOLUTE = re.compile(rb"[hH][tT][tT][pP][sS]?://([^/?#]+)([/?#].*)?")
_HOST = re.compile(rb"[0-9A-Za-z.\-_~%!$&'()*+,;=:\[\]]*")
_FIRST_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz\r")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a head says.

    Attributes:
        version: "1.1" or "1.0".
        path, raw_path, query: as ASGI has them.
        headers: names in lower case, in the order they came.
        length: bytes of the body; None where it comes in chunks.
        keep_alive: whether the client will go on using the connection.
        expects_continue: whether the client waits for a word before it sends the body.
    """

    method: str
    version: str
    path: str
    raw_path: bytes
    query: bytes
    headers: Headers
    length: int | None
    keep_alive: bool
    expects_continue: bool


class HeadReader:
    """Finds the end of a head in bytes as they arrive, at a cost that is linear in them, and never keeps more than one head's."""

    def __init__(self) -> None:
        self._searched = 0
        self._blank_lines = 0

    def take(self, buffer: bytearray) -> RequestHead | None:
        """The head at the beginning of `buffer`, which is taken out of it; None as long as it is not complete.

        Raises:
            HeadTooLarge: it is, complete or not, over a limit.
            MalformedRequest: it is no head of an HTTP/1.x request.
        """
        if not self._searched:
            while buffer.startswith(b"\r\n"):  # left behind by some clients after a body (RFC 9112, 2.2)
                del buffer[:2]
                self._blank_lines += 1
                if self._blank_lines > MAX_BLANK_LINES:
                    raise MalformedRequest(f"There may be at most {MAX_BLANK_LINES} blank lines before a request.")
            if buffer == b"\r":
                return None
            if buffer and buffer[0] not in _FIRST_BYTES:
                raise MalformedRequest("This is not HTTP: the first byte of a request must be one of a method's name.")
        end = buffer.find(_END, max(0, self._searched - 3))
        head = end if end >= 0 else len(buffer)
        if head > MAX_HEAD_BYTES:
            raise HeadTooLarge(f"A request's head must have at most {MAX_HEAD_BYTES} bytes.")
        bare = _BARE_LF.search(buffer, max(0, self._searched - 1), head)
        if bare is not None:
            raise MalformedRequest("A line of the head ends with LF alone; it must be CRLF.")
        if end < 0:
            self._searched = len(buffer)
            return None
        lines = bytes(buffer[:end]).split(b"\r\n")
        del buffer[: end + len(_END)]
        self._searched = self._blank_lines = 0
        return parse_head(lines)


def parse_head(lines: list[bytes]) -> RequestHead:
    """The head of these lines.

    Raises:
        HeadTooLarge, MalformedRequest: as `HeadReader.take`.
    """
    if len(lines) > MAX_HEADERS + 1:
        raise HeadTooLarge(f"A request must have at most {MAX_HEADERS} headers, got {len(lines) - 1}.")
    if max(map(len, lines)) > MAX_LINE_BYTES:
        raise HeadTooLarge(f"A line of a request's head must have at most {MAX_LINE_BYTES} bytes.")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise MalformedRequest("The first line must be `METHOD TARGET HTTP/1.1`.")
    method, target, major, minor = match.groups()
    if major != b"1":
        raise MalformedRequest("This server speaks HTTP/1.1.", headers={"Upgrade": "HTTP/1.1"})
    version = "1.0" if minor == b"0" else "1.1"
    headers = [_header(line) for line in lines[1:]]
    raw_path, query = _resource(method, target, headers)
    _check_host(headers, version)
    connection = {token.strip() for value in _values(headers, b"connection") for token in value.lower().split(b",")}
    return RequestHead(
        method=method.decode("ascii"),
        version=version,
        path=unquote(raw_path.decode("ascii")),
        raw_path=raw_path,
        query=query,
        headers=headers,
        length=_body_length(headers, version),
        keep_alive=version == "1.1" and b"close" not in connection,
        expects_continue=version == "1.1" and b"100-continue" in map(bytes.lower, _values(headers, b"expect")),
    )


def _header(line: bytes) -> tuple[bytes, bytes]:
    match = _HEADER.fullmatch(line)
    if match is None:
        raise MalformedRequest("A header must be one line `Name: value`, without control characters.")
    name, value = match.groups()
    return name.lower(), value.rstrip(b" \t")


def _values(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _resource(method: bytes, target: bytes, headers: Headers) -> tuple[bytes, bytes]:
    """Path and query. A target with a host in it (as for a proxy) is this server's all the same; its host then counts."""
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is not None:
            headers[:] = [(b"host", absolute[1])] + [header for header in headers if header[0] != b"host"]
            rest = absolute[2] or b"/"
            target = rest if rest.startswith(b"/") else b"/" + rest
        elif not (target == b"*" and method == b"OPTIONS"):
            raise MalformedRequest("The target of a request must be a path, or a URL of this server.")
    path, _, query = target.partition(b"#")[0].partition(b"?")
    return path, query


def _check_host(headers: Headers, version: str) -> None:
    hosts = _values(headers, b"host")
    if len(hosts) > 1 or (version == "1.1" and not hosts) or not all(map(_HOST.fullmatch, hosts)):
        raise MalformedRequest(f"A request must have one valid Host header, got {len(hosts)}.")


def _body_length(headers: Headers, version: str) -> int | None:
    """Bytes of the body, None for chunks: said once and in one way, or refused."""
    lengths, encodings = _values(headers, b"content-length"), _values(headers, b"transfer-encoding")
    if encodings:
        if lengths or version == "1.0":
            raise MalformedRequest("Transfer-Encoding must not stand beside Content-Length, nor in HTTP/1.0.")
        if len(encodings) > 1 or encodings[0].lower() != b"chunked":
            raise MalformedRequest("The only Transfer-Encoding served is `chunked`, once.")
        return None
    if not lengths:
        return 0
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > MAX_LENGTH_DIGITS:
        raise MalformedRequest("Content-Length must be one decimal number.")
    return int(lengths[0])
