"""Simulated time: what is to happen, in order."""

import heapq
from collections.abc import Callable
from itertools import count


class Timeline:
    """Calls actions at their times; of several at the same time, in the order in which they were announced."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()

    def at(self, time: float, action: Callable[[float], None]) -> None:
        """Call `action` with `time`, in seconds, when it has come."""
        heapq.heappush(self._events, (time, next(self._order), action))

    def run_until(self, time: float) -> None:
        """Let everything happen up to and at this time; what happens may announce more."""
        while self._events and self._events[0][0] <= time:
            at, _, action = heapq.heappop(self._events)
            action(at)
