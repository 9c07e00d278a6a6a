"""Simulated time: what is to happen, in order, and when steps have ended."""

import heapq
from array import array
from collections.abc import Callable, Sequence
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


class StepTicks:
    """When the tokens of steps were there, in seconds, by the step's id: of the latest ones, without a gap."""

    def __init__(self) -> None:
        self._first = 0
        self._ticks = array("d")

    def add(self, step_id: int, ticks: Sequence[float]) -> None:
        """Steps have ended, this one and those after it."""
        if step_id != self._first + len(self._ticks):
            self._first, self._ticks = step_id, array("d")
        self._ticks.extend(ticks)

    def of(self, steps: range) -> "array[float]":
        """Those of these steps."""
        return self._ticks[steps.start - self._first : steps.stop - self._first]
