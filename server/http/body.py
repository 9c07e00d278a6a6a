"""A request's body, from its bytes: as many as Content-Length says, or chunks (RFC 9112, 7.1). Cost is linear in the bytes."""

import re
from typing import Protocol

from server.errors import MalformedRequest

MAX_CHUNK_LINE = 256
MAX_TRAILER_BYTES = 8 * 1024
# Bytes that are not data: this much, and as much again as there is data. A megabyte in chunks of one byte is an attack.
FREE_OVERHEAD = 64 * 1024

_SIZE_LINE = re.compile(
    rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[\t\x20-\x7e]*)?"
)  # extensions are ignored, as the RFC wants it
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")


class BodyReader(Protocol):
    """Takes one body out of a buffer, as it arrives."""

    done: bool

    def take(self, buffer: bytearray) -> bytes:
        """What of the body is at the beginning of `buffer`, which is taken out of it.

        Raises:
            MalformedRequest: it is no body; what follows cannot be told apart from it.
        """


class SizedBody:
    """A body of a length that is known."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def take(self, buffer: bytearray) -> bytes:
        """As many bytes as are still missing."""
        data = bytes(buffer[: self._left])
        del buffer[: len(data)]
        self._left -= len(data)
        self.done = self._left == 0
        return data


class ChunkedBody:
    """A body in chunks."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # bytes of the present chunk
        self._after_data = False  # a chunk's data is through, its CRLF is not
        self._in_trailers = False
        self._trailer_bytes = 0
        self._data, self._overhead = 0, 0

    def take(self, buffer: bytearray) -> bytes:
        """The data of the chunks that are there."""
        parts: list[bytes] = []
        while not self.done:
            if self._left:
                if not buffer:
                    break
                part = bytes(buffer[: self._left])
                del buffer[: len(part)]
                self._left -= len(part)
                self._data += len(part)
                self._after_data = self._left == 0
                parts.append(part)
                continue
            line = self._line(buffer)
            if line is None:
                break
            self._take_line(line)
        return b"".join(parts)

    def _line(self, buffer: bytearray) -> bytes | None:
        """The next line without its CRLF; None as long as it is not complete."""
        limit = MAX_TRAILER_BYTES if self._in_trailers else MAX_CHUNK_LINE
        end = buffer.find(b"\n", 0, limit)
        if end < 0:
            if len(buffer) >= limit:
                raise MalformedRequest(f"A line between chunks must have at most {limit} bytes.")
            return None
        line = bytes(buffer[: end + 1])
        del buffer[: end + 1]
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            raise MalformedRequest("A line between chunks must end with CRLF.")
        self._overhead += len(line)
        if self._overhead > FREE_OVERHEAD + self._data:
            raise MalformedRequest("The chunks of the body are too small: most bytes are not data.")
        return line[:-2]

    def _take_line(self, line: bytes) -> None:
        if self._in_trailers:
            self._take_trailer(line)
        elif self._after_data:
            if line:
                raise MalformedRequest("A chunk is longer than its size says.")
            self._after_data = False
        else:
            match = _SIZE_LINE.fullmatch(line)
            if match is None:
                raise MalformedRequest("A chunk must begin with its size in hexadecimal digits.")
            self._left = int(match[1], 16)
            self._in_trailers = self._left == 0

    def _take_trailer(self, line: bytes) -> None:
        """Trailers are checked and dropped: nothing here has a use for them."""
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES or (line and not _TRAILER.fullmatch(line)):
            raise MalformedRequest("The trailers after the last chunk are too long or malformed.")
        self.done = not line


def body_reader(length: int | None) -> BodyReader:
    """The reader of a body of this length, None for chunks."""
    return ChunkedBody() if length is None else SizedBody(length)
