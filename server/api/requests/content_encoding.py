"""`Content-Encoding`: bodies that are sent compressed (RFC 9110, 8.4), as they were before.

A body may become a thousand times as long, thirty thousand with zstd, so it is decoded in small steps and its length is known, and
refused if it is too large, before any of it is kept.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import zstandard

from server.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType
from server.schema.shown import shown

MAX_CODINGS = 3  # one on top of another; clients use one
MAX_MEMBERS = 4096  # gzip streams and zstd frames in one body: one that becomes nothing still costs a step
STEP_BYTES = 128  # taken in at once: at most 4 MiB come out
ZSTD_WINDOW = 8 * 2**20  # bytes; what RFC 9659 has decoders offer


class _Decompressor(Protocol):
    """Of `zlib` and of `zstandard`, what they have in common. `eof`: a member has ended, `unused_data` stood behind it."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes:
        """What `data` adds."""


@dataclass(frozen=True, slots=True)
class _Coding:
    """How one content coding is decoded: a decompressor for a member by its first byte, and how many members there may be."""

    start: Callable[[int], _Decompressor]
    members: int


def _gzip(first: int) -> _Decompressor:
    return zlib.decompressobj(16 + zlib.MAX_WBITS)


def _deflate(first: int) -> _Decompressor:
    """Of zlib's format, as the name means, or bare, as many clients understand it: no bare stream begins with zlib's byte."""
    return zlib.decompressobj(zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


def _zstd(first: int) -> _Decompressor:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()


_CODINGS = {"gzip": _Coding(_gzip, MAX_MEMBERS), "deflate": _Coding(_deflate, 1), "zstd": _Coding(_zstd, MAX_MEMBERS)}
SERVED = ", ".join(_CODINGS)


def codings_of(headers: Sequence[str]) -> list[str]:
    """The codings that these header lines name, in the order in which they were applied.

    Raises:
        UnsupportedMediaType: one that is not served, or too many.
    """
    names = [name.strip().lower() for name in ",".join(headers).split(",")]
    codings = [name.removeprefix("x-") if name == "x-gzip" else name for name in names if name not in ("", "identity")]
    unknown = next((name for name in codings if name not in _CODINGS), None)
    if unknown is not None:
        message = f"The header Content-Encoding must be one of {SERVED} or identity, got {shown(unknown)}"
        raise UnsupportedMediaType(message, headers={"Accept-Encoding": SERVED})
    if len(codings) > MAX_CODINGS:
        message = f"The header Content-Encoding must name at most {MAX_CODINGS} codings, got {len(codings)}"
        raise UnsupportedMediaType(message, headers={"Accept-Encoding": SERVED})
    return codings


def decoded_size(body: bytes, codings: Sequence[str], limit: int) -> int:
    """How many bytes the body has without its codings. Nothing of it is kept.

    Raises:
        BodyTooLarge: more than `limit`, after any of the codings.
        InvalidRequest: it is not what the header says, is cut off, or something stands behind it.
    """
    return sum(map(len, _decoded(body, codings, limit)))


def decoded(body: bytes, codings: Sequence[str], limit: int) -> bytes:
    """The body without its codings. Raises what `decoded_size` does."""
    return b"".join(_decoded(body, codings, limit)) if codings else body


def _decoded(body: bytes, codings: Sequence[str], limit: int) -> Iterable[bytes]:
    parts: Iterable[bytes] = [body]
    for coding in reversed(codings):
        parts = _bounded(_members(parts, coding), limit)
    return parts


def _members(parts: Iterable[bytes], name: str) -> Iterator[bytes]:
    """What these parts of one stream become without its coding."""
    coding, members = _CODINGS[name], 0
    member: _Decompressor | None = None
    for step in _steps(parts):
        rest = step
        while rest:
            if member is None:
                if members == coding.members:
                    raise _broken(
                        name, "something stands behind its end" if members == 1 else f"it has over {members} parts"
                    )
                member, members = coding.start(rest[0]), members + 1
            try:
                yield member.decompress(rest)
            except (zlib.error, zstandard.ZstdError) as error:
                raise _broken(name, str(error)) from None
            rest, member = (member.unused_data, None) if member.eof else (b"", member)
    if member is not None or not members:
        raise _broken(name, "it ends too early")


def _steps(parts: Iterable[bytes]) -> Iterator[bytes]:
    for part in parts:
        for start in range(0, len(part), STEP_BYTES):
            yield part[start : start + STEP_BYTES]


def _bounded(parts: Iterable[bytes], limit: int) -> Iterator[bytes]:
    size = 0
    for part in parts:
        size += len(part)
        if size > limit:
            raise BodyTooLarge(
                f"The request body has more than {limit} bytes when it is decoded; the limit (max_body_bytes) is {limit}."
            )
        yield part


def _broken(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"The body is not {name}, as the header Content-Encoding says: {why}")
