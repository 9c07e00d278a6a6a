"""A request's body, from its bytes: as many as Content-Length says, or chunks (RFC 9112, 7.1). Cost is linear in the bytes."""

import re
from typing import Protocol

from server.errors import MalformedRequest

MAX_CHUNK_LINE = 256
MAX_TRAILER_BYTES = 8 * 1024
# Bytes around the data of chunks. Each chunk may have as many as it has data, twice, and 16; what is over that adds up to this
# at most. So short lines are free, whatever the chunks' size, and long extensions are not (the rule of Go's net/http).
MAX_EXCESS = 16 * 1024

# Extensions are ignored, as the RFC wants it.
_SIZE_LINE = re.compile(rb"([0-9a-fA-F]{1,15})[ \t]*(?:;[\t\x20-\x7e]*)?\r\n")
_NEXT_SIZE_LINE = re.compile(rb"\r\n" + _SIZE_LINE.pattern)  # behind a chunk's data
_TRAILER = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*)?\r\n")


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
        self._size_line = _SIZE_LINE
        self._left = 0  # bytes of the present chunk
        self._excess = 0
        self._in_trailers = False
        self._trailer_bytes = 0

    def take(self, buffer: bytearray) -> bytes:
        """The data of the chunks that are there."""
        data, at = bytearray(), 0
        while not self._in_trailers:
            if not self._left:
                match = self._size_line.match(buffer, at, at + MAX_CHUNK_LINE)
                if match is None:
                    self._check_rest(buffer, at)
                    break
                self._begin_chunk(int(match[1], 16), match.end() - at)
                at = match.end()
            part = buffer[at : at + self._left]
            data += part
            at += len(part)
            self._left -= len(part)
            if self._left:
                break
        while self._in_trailers and not self.done:
            taken = self._take_trailer(buffer, at)
            if not taken:
                break
            at += taken
        del buffer[:at]
        return bytes(data)

    def _begin_chunk(self, size: int, line_bytes: int) -> None:
        self._size_line = _NEXT_SIZE_LINE
        self._left = size
        self._in_trailers = size == 0
        excess = self._excess + line_bytes - 16 - 2 * size
        self._excess = excess if excess > 0 else 0
        if excess > MAX_EXCESS:
            raise MalformedRequest("Most of the body is not data but extensions of its chunks.")

    def _check_rest(self, buffer: bytearray, at: int) -> None:
        """What stands there is no line with a size, but may become one."""
        first = at if self._size_line is _SIZE_LINE else at + 2
        if len(buffer) - at >= MAX_CHUNK_LINE or buffer.find(b"\n", first) >= 0:
            raise MalformedRequest(
                f"A chunk must have the length that it says, and begin with a line of hexadecimal digits that ends with "
                f"CRLF and has at most {MAX_CHUNK_LINE} bytes."
            )

    def _take_trailer(self, buffer: bytearray, at: int) -> int:
        """Read a line behind the last chunk; its length, 0 as long as it is not complete. Nothing here has a use for it."""
        end = buffer.find(b"\n", at) + 1
        line = bytes(buffer[at : end or len(buffer)])
        if self._trailer_bytes + len(line) > MAX_TRAILER_BYTES or (end and not _TRAILER.fullmatch(line)):
            raise MalformedRequest(
                f"Trailers must be lines `Name: value` that end with CRLF, of at most {MAX_TRAILER_BYTES} bytes in all."
            )
        if not end:
            return 0
        self._trailer_bytes += len(line)
        self.done = line == b"\r\n"
        return len(line)


def body_reader(length: int | None) -> BodyReader:
    """The reader of a body of this length, None for chunks."""
    return ChunkedBody() if length is None else SizedBody(length)
