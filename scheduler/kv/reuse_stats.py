"""How soon contents of a kind are asked for again, learned from those that were and those that were not.

Age is counted in contents asked for, in classes a factor of the square root of two apart. For each kind and age it is known how
many reached that age without being asked for, and how many were asked for before the next. From the two follows what it is worth
to keep such a content: the most reuses per place and time that keeping it for a while can bring (the index of Gittins, 1979, for
a job that pays when it ends). Kinds without history are worth what all of them together are.

What belongs here: counts and what follows from them. Never: keys, an order.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

_AGES = 16
_PRIOR = 16.0  # contents in a kind's own history at which it weighs as much as the history of all kinds
_UPDATES = 8  # of the worths, while as many contents are asked for as the store holds


@dataclass(slots=True, eq=False)
class Cohort:
    """Contents of one kind that one request asked for."""

    kind: Hashable
    born: int
    waiting: int = 0  # contents not asked for since, and not forgotten


class ReuseStats:
    """Statistics of one store.

    Args:
        capacity: contents that it holds. Ages are distinguished from a sixteenth of it to eight times as much.
    """

    def __init__(self, capacity: int) -> None:
        self.now = 0  # contents asked for so far
        self._edges = [0, *(max(step + 1, int(capacity / 16 * 2 ** (step / 2))) for step in range(_AGES - 1))]
        self._reached: dict[Hashable, list[float]] = {}
        self._reused: dict[Hashable, list[float]] = {}
        self._ageing: list[deque[Cohort]] = [deque() for _ in range(_AGES)]
        self._worths: dict[Hashable, list[float]] = {}
        self._default = [0.0] * _AGES
        self._period = max(64, capacity // _UPDATES)
        self._next_update = self._period

    def advance(self, contents: int) -> None:
        """`contents` contents are asked for: time advances by as much."""
        self.now += contents
        for age in range(_AGES - 1):
            queue = self._ageing[age]
            while queue and self.now - queue[0].born >= self._edges[age + 1]:
                group = queue.popleft()
                if group.waiting:
                    self._reached[group.kind][age + 1] += group.waiting
                    self._ageing[age + 1].append(group)
        if self.now >= self._next_update:
            self._next_update = self.now + self._period
            self._update()

    def group(self, kind: Hashable) -> Cohort:
        """A new group, with no contents yet, to which `on_join` adds."""
        group = Cohort(kind, self.now)
        if kind not in self._reached:
            self._reached[kind], self._reused[kind] = [0.0] * _AGES, [0.0] * _AGES
        self._ageing[0].append(group)
        return group

    def on_join(self, group: Cohort, contents: int) -> None:
        """`contents` contents join the newly made group."""
        group.waiting += contents
        self._reached[group.kind][0] += contents

    def on_reuse(self, group: Cohort, contents: int) -> None:
        """`contents` contents of the group are asked for again."""
        group.waiting -= contents
        self._reused[group.kind][self._age(group)] += contents

    def worth(self, group: Cohort) -> float:
        """Expected reuses per place and content asked for, of this group's contents that have not been asked for again."""
        return self._worths.get(group.kind, self._default)[self._age(group)]

    def _age(self, group: Cohort) -> int:
        return bisect_right(self._edges, self.now - group.born) - 1

    def _update(self) -> None:
        every = [
            (sum(column_reused) + 0.25) / (sum(column_reached) + 1.0)
            for column_reused, column_reached in zip(
                zip(*self._reused.values(), strict=True), zip(*self._reached.values(), strict=True), strict=True
            )
        ]
        self._default = self._indices(every)
        for kind, reached in self._reached.items():
            pairs = zip(self._reused[kind], reached, every, strict=True)
            self._worths[kind] = self._indices([min(1.0, (r + _PRIOR * e) / (n + _PRIOR)) for r, n, e in pairs])

    def _indices(self, chances: list[float]) -> list[float]:
        """Worth by age of contents that are asked for with these probabilities at each age they reach."""
        widths = [end - begin for begin, end in zip(self._edges, self._edges[1:], strict=False)]
        worths = []
        for age in range(_AGES):
            waits, gain, cost, best = 1.0, 0.0, 0.0, 0.0
            for chance, width in zip(chances[age:-1], widths[age:], strict=True):
                gain += waits * chance
                cost += waits * width * (1 - chance / 2)
                waits *= 1 - chance
                if cost > 0:  # ages of a tiny store may have no width at all
                    best = max(best, gain / cost)
            worths.append(best)
        return worths
