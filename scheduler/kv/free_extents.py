"""Which ids of a numbered row (blocks of a pool, slots of a store) are free, in runs of consecutive ids, to be taken together.

A run is as long as possible: two runs never touch. Runs are grouped by the power of two below their length, so that one that
fits, or nearly the longest, is found without looking at all of them (after Masmano et al., "TLSF", ECRTS 2004, with one level).
"""

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

_LOOKED_AT = 8  # runs of one class that are compared: bounds the time at little cost to the fit


class FreeExtents:
    """A set of ids below `limit`. The cost of a call grows with the logarithm of the number of runs."""

    def __init__(self, limit: int) -> None:
        self._end_of: dict[int, int] = {}  # one past the last id of the run that begins there
        self._begins: list[int] = []  # sorted
        self._classes: list[dict[int, None]] = [{} for _ in range(limit.bit_length() + 1)]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, block_id: int) -> bool:
        return self._run_of(block_id) is not None

    def __iter__(self) -> Iterator[int]:
        for begin in self._begins:
            yield from range(begin, self._end_of[begin])

    def add(self, begin: int, end: int) -> None:
        """Add the ids from `begin` up to but not including `end`, none of which is here."""
        if begin >= end:
            return
        self._count += end - begin
        behind = self._end_of.get(end)
        if behind is not None:
            self._drop(end)
            end = behind
        place = bisect_right(self._begins, begin)
        before = self._begins[place - 1] if place else -1
        if place and self._end_of[before] == begin:
            self._drop(before)
            begin = before
        self._put(begin, end)

    def add_all(self, block_ids: Iterable[int]) -> None:
        """Add these ids, none of which is here."""
        begin = end = -1
        for block_id in sorted(block_ids):
            if block_id != end:
                self.add(begin, end)
                begin = block_id
            end = block_id + 1
        self.add(begin, end)

    def take(self, begin: int, end: int) -> None:
        """Take out the ids from `begin` up to but not including `end`. Raises KeyError unless one run has them all."""
        run = self._run_of(begin)
        if run is None or self._end_of[run] < end:
            raise KeyError(f"{begin} to {end} is not part of a run")
        run_end = self._end_of[run]
        self._drop(run)
        self._count -= end - begin
        if run < begin:
            self._put(run, begin)
        if end < run_end:
            self._put(end, run_end)

    def take_any(self, count: int) -> list[int]:
        """`count` ids, or all if there are fewer: from few runs, one run after the other, each ascending."""
        taken: list[int] = []
        while self._begins and len(taken) < count:
            rest = count - len(taken)
            begin = self.find(rest)
            end = min(begin + rest, self._end_of[begin])
            self.take(begin, end)
            taken += range(begin, end)
        return taken

    def check_integrity(self) -> None:
        """Compare the books with each other. Raises AssertionError that names the first contradiction."""
        assert self._begins == sorted(self._end_of), "the list of beginnings and the runs differ"
        runs = [(begin, self._end_of[begin]) for begin in self._begins]
        assert all(begin < end for begin, end in runs), "an empty run"
        assert all(end < begin for (_, end), (begin, _) in pairwise(runs)), "runs overlap or touch"
        assert self._count == sum(end - begin for begin, end in runs), f"{self._count} ids are counted"
        classes = {begin: length for length, members in enumerate(self._classes) for begin in members}
        assert classes == {begin: (end - begin).bit_length() for begin, end in runs}, "a run is in another's class"

    def end_of(self, block_id: int) -> int:
        """One past the last id of the run that contains this id; the id itself if no run does."""
        run = self._run_of(block_id)
        return block_id if run is None else self._end_of[run]

    def find(self, length: int) -> int:
        """The first id of a run of at least this length, preferably a short one; of nearly the longest if there is none.

        Raises:
            KeyError: the set is empty.
        """
        for runs in islice(self._classes, length.bit_length(), None):
            fits = [run for run in islice(runs, _LOOKED_AT) if self._end_of[run] - run >= length]
            if fits:
                return min(fits, key=self._length)
        for runs in reversed(self._classes):
            if runs:
                return max(islice(runs, _LOOKED_AT), key=self._length)
        raise KeyError("nothing is free")

    def _length(self, begin: int) -> int:
        return self._end_of[begin] - begin

    def _run_of(self, block_id: int) -> int | None:
        place = bisect_right(self._begins, block_id)
        begin = self._begins[place - 1] if place else block_id + 1
        return begin if begin <= block_id < self._end_of[begin] else None

    def _put(self, begin: int, end: int) -> None:
        insort(self._begins, begin)
        self._end_of[begin] = end
        self._classes[(end - begin).bit_length()][begin] = None

    def _drop(self, begin: int) -> None:
        del self._begins[bisect_right(self._begins, begin) - 1]
        del self._classes[self._length(begin).bit_length()][begin]
        del self._end_of[begin]
