"""Cuts the body of a streamed answer into events, as the HTML standard says (section 9.2, server-sent events).

What belongs here: line ends (LF, CRLF or CR, mixed as they come), the byte order mark, comments, fields. What does not: what the
data of an event means.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"
# The end of a line and then an empty line; CRLF is never taken for two ends.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?:\r\n|\n|\r)")


class StreamEvent(NamedTuple):
    """One event, or what no blank line ended.

    Attributes:
        at: when its last byte came, in seconds.
        raw: its bytes, the blank line included.
        whole: whether a blank line ended it.
        data: the values of its `data` fields, joined by LF; None if it has none or is not whole, and so is no event to a reader.
    """

    at: float
    raw: bytes
    whole: bool
    data: bytes | None


def events_of(body: bytes, times: Sequence[float], ends: Sequence[int]) -> Iterator[StreamEvent]:
    """The events of a body in order; bytes that no blank line ends come last.

    Args:
        body: everything received.
        times, ends: when the body's pieces came, and the offsets where they end.
    """
    start = 0
    while start < len(body):
        found = _BLANK_LINE.search(body, start)
        end = found.end() if found else len(body)
        raw = body[start:end]
        data = data_of(raw if start else raw.removeprefix(_BOM)) if found else None
        yield StreamEvent(times[min(bisect_left(ends, end), len(times) - 1)], raw, found is not None, data)
        start = end


def data_of(event: bytes) -> bytes | None:
    """The data of a whole event: its `data` fields joined by LF; None if it has none. Other fields are ignored."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and b"\r" not in event:
        return event[6:-2]  # the usual event of one line
    found: list[bytes] = []
    for line in event.splitlines():  # of bytes: at LF, CRLF and CR only
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
    return b"\n".join(found) if found else None
