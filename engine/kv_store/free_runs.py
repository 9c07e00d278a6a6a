"""Free slots, handed out in runs of neighbours so that many blocks are one copy."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator


class FreeRuns:
    """The free ones of slots 0..count-1. Not safe for threads.

    Best fit: a run that is just long enough is used up before a longer one is cut, and where none is long enough the longest go
    first, which makes the fewest pieces. Neighbours that are given back become one run again.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = 0
        self._by_length: list[tuple[int, int]] = []  # (length, start), sorted
        self._lengths: dict[int, int] = {}  # start: length
        self._starts: dict[int, int] = {}  # one past the end: start
        self._add(0, count)

    def __len__(self) -> int:
        return self._free

    def take(self, count: int) -> list[int]:
        """`count` slots, or all that are free if they are fewer: run after run, each ascending."""
        taken: list[int] = []
        while len(taken) < count and self._by_length:
            wanted = count - len(taken)
            place = bisect_left(self._by_length, (wanted, -1))
            length, start = self._by_length[min(place, len(self._by_length) - 1)]
            self._remove(start)
            used = min(length, wanted)
            taken += range(start, start + used)
            self._add(start + used, length - used)
        return taken

    def give(self, slots: Iterable[int]) -> None:
        """These are free again."""
        for start, length in _runs(slots):
            self._give(start, length)

    def _give(self, start: int, length: int) -> None:
        end = start + length
        if end in self._lengths:
            length += self._remove(end)
        if start in self._starts:
            start = self._starts[start]
            length += self._remove(start)
        self._add(start, length)

    def check(self) -> None:
        """Raises: AssertionError: naming the first contradiction."""
        runs = sorted(self._lengths.items())
        assert sorted((length, start) for start, length in runs) == self._by_length, "runs by length are not the runs"
        assert {start + length: start for start, length in runs} == self._starts, "ends of runs are not the runs'"
        assert sum(length for _, length in runs) == self._free, f"{self._free} slots are said to be free"
        assert all(length > 0 for _, length in runs), "an empty run"
        ends = [0, *(start + length for start, length in runs)]
        bounds = zip(ends, [*(start for start, _ in runs), self._count], strict=True)
        assert all(end <= start for end, start in bounds), "runs overlap or leave the store"
        assert not self._starts.keys() & self._lengths.keys(), "neighbouring runs were not joined"

    def free(self) -> Iterator[int]:
        """All of them, in no order."""
        for start, length in self._lengths.items():
            yield from range(start, start + length)

    def _add(self, start: int, length: int) -> None:
        if length:
            insort(self._by_length, (length, start))
            self._lengths[start] = length
            self._starts[start + length] = start
            self._free += length

    def _remove(self, start: int) -> int:
        length = self._lengths.pop(start)
        del self._starts[start + length]
        del self._by_length[bisect_left(self._by_length, (length, start))]
        self._free -= length
        return length


def _runs(slots: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(start, length) of the runs of neighbours."""
    start = length = 0
    for slot in sorted(slots):
        if length and slot == start + length:
            length += 1
        else:
            if length:
                yield start, length
            start, length = slot, 1
    if length:
        yield start, length
