"""What of a JSON body is counted before anything is made of it: one pass over the bytes, no memory.

A small object takes fifty times its text, and checking it a call each, so the size of the body is no bound on either. Strings are
skipped whole: what stands in a prompt counts for nothing.
"""

import re

from server.errors import InvalidRequest

MAX_CONTAINERS = 32 * 1024  # objects and arrays: a conversation of ten thousand messages with parts
MAX_STRINGS = 128 * 1024  # names included
MAX_VALUES = 4 * 2**20  # token ids, above all: as many as a body of the default limit holds of five digits
COUNTED_BYTES = 16 * 1024  # a smaller body cannot hold too much

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # one that does not end reaches to the end


def check_bounds(body: bytes) -> None:
    """Nothing, for a body that may be parsed. Whether it is JSON at all is found out then.

    Raises:
        InvalidRequest: it has too many objects and arrays, strings, or values.
    """
    if len(body) <= COUNTED_BYTES:
        return
    containers = values = end = 0
    for strings, match in enumerate(_STRING.finditer(body), 1):
        start = match.start()
        containers, values = _counted(body, end, start, containers, values)
        end = match.end()
        _check(strings, MAX_STRINGS, "strings")
    _counted(body, end, len(body), containers, values)


def _counted(body: bytes, start: int, end: int, containers: int, values: int) -> tuple[int, int]:
    """The counts, and what stands from `start` to `end`, outside strings, added to them."""
    containers += body.count(b"{", start, end) + body.count(b"[", start, end)
    values += body.count(b",", start, end)
    _check(containers, MAX_CONTAINERS, "objects and arrays")
    _check(values, MAX_VALUES, "values")
    return containers, values


def _check(count: int, limit: int, kind: str) -> None:
    if count > limit:
        raise InvalidRequest(f"The body must hold at most {limit} {kind}")
