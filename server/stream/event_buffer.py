"""The events of one resumable stream, numbered and kept for a client that comes back."""

from collections import deque
from itertools import islice

EVENT_OVERHEAD = 64  # bytes that an event takes beside its text


def size_of(event: bytes) -> int:
    """What an event takes of memory, in bytes, as the bounds count it."""
    return len(event) + EVENT_OVERHEAD


class EventBuffer:
    """Whole events (each with its blank line) in order, with numbers from 1 on; the oldest may have been dropped.

    Args:
        ids: whether events carry their numbers.

    Attributes:
        dropped: how many are not there any more; they were numbers 1 to `dropped`.
        size: of those that are there, in bytes (`size_of`).
    """

    def __init__(self, *, ids: bool = True) -> None:
        self._written = _numbered if ids else _plain
        self.dropped = 0
        self.size = 0
        self._events: deque[bytes] = deque()

    @property
    def last(self) -> int:
        """Number of the newest event; 0 before the first."""
        return self.dropped + len(self._events)

    def append(self, event: bytes) -> None:
        """Add the next event."""
        self._events.append(event)
        self.size += size_of(event)

    def drop_oldest(self) -> int:
        """Drop the oldest event; its size in bytes. There must be one."""
        size = size_of(self._events.popleft())
        self.dropped += 1
        self.size -= size
        return size

    def after(self, number: int, most: int) -> tuple[bytes, int]:
        """The next events behind event `number`, and the number of the last of them.

        Args:
            number: of an event, from `dropped` to `last`; 0 is in front of the first.
            most: bytes; more only where a single event has more.
        """
        if number == self.last - 1:  # the usual case: one event has come since
            return self._written(self._events[-1], self.last), self.last
        parts: list[bytes] = []
        taken = 0
        for event in islice(self._events, number - self.dropped, None):
            taken += len(event)
            if parts and taken > most:
                break
            number += 1
            parts.append(self._written(event, number))
        return b"".join(parts), number


def _numbered(event: bytes, number: int) -> bytes:
    return b"id: %d\n%b" % (number, event)


def _plain(event: bytes, number: int) -> bytes:
    return event
