"""Which steps get a CUDA graph, and which is next. Plain data: no torch, no clock.

A graph has a fixed number of rows; its sequences may have any length (`kernels.gpu.attention.decode_work`). A step runs on the
graph with the fewest rows that cover it; its other rows are padding. There are no graphs at first: a number of rows, its bucket,
runs kernel by kernel until that has cost the host more than recording a graph does, and the bucket that has cost most is recorded
first. A rule that knows nothing of the future thus spends at most twice what the best choice would have (the ski-rental bound:
Karlin et al. 1988, "Competitive snoopy caching", section 3).

A start records the widest and the narrowest of each kind of step, the one with the most rows before any other: graphs share one
pool of memory, and what the widest needs holds every other. In ascending order each would find the blocks of those before it too
small, and the pool would grow to the sum of all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

StepKind = Literal["decode", "chunks"]  # single tokens alone; chunks of prompts, with or without single tokens

MOST_FAILURES = 3
# Rows of steps with chunks up to which there are graphs: with more, what the device computes takes longer than launching it does.
CHUNK_ROWS = 512
_CHUNK_GAP = 64
ROWS_FACTOR = 2  # a recorded graph with at most this many times the rows stands in for one that is not recorded yet
# What a step on a graph that stands in is taken to cost its own shape: padding rows are multiplied, too. Not measured.
STAND_IN_SECONDS = 0.5e-3


def row_steps(most: int) -> list[int]:
    """Numbers of rows that have graphs: 1, 2, 4, then gaps of an eighth of the number (8 at least), up to `most`."""
    steps = [1, 2, 4]
    while steps[-1] < most:
        gap = 1 << max(3, steps[-1].bit_length() - 4)
        steps.append(steps[-1] // gap * gap + gap)
    return [step for step in steps if step < most] + [most]


def chunk_row_steps(most: int) -> list[int]:
    """Numbers of rows that have graphs of steps with chunks: 16, 32, 64, then multiples of that, up to `most` or `CHUNK_ROWS`. Up
    to some 256 rows reading the weights takes most of the time, so that rows of padding cost little."""
    limit = min(most, CHUNK_ROWS)
    return [step for step in (16, 32, *range(_CHUNK_GAP, limit, _CHUNK_GAP)) if step < limit] + [limit]


@dataclass(frozen=True, slots=True)
class GraphShape:
    """What a graph is for: steps of this kind, of so many rows."""

    kind: StepKind
    rows: int


class GraphPlan:
    """Counts what eager steps of one kind cost and names what to record.

    Args:
        max_rows: of a step.
        recording: False: never name anything to record; every step runs eagerly.
        steps: numbers of rows that graphs may have, ascending, by the most.
    """

    def __init__(self, max_rows: int, *, recording: bool = True, steps: Callable[[int], list[int]] = row_steps) -> None:
        self._recording = recording
        self._rows = steps(max_rows)
        self._spent: dict[int, float] = {}  # of buckets without a graph: seconds of eager steps
        self._recorded: set[int] = set()
        self._cost = 0.0  # seconds that the last recording took
        self.failures = 0

    @property
    def largest(self) -> int:
        """The bucket that covers every step."""
        return self._rows[-1]

    @property
    def row_counts(self) -> list[int]:
        """Numbers of rows that graphs may have, ascending."""
        return list(self._rows)

    @property
    def first(self) -> list[int]:
        """What a start records, in order: the most rows, then one row."""
        return list(dict.fromkeys((self._rows[-1], self._rows[0]))) if self._recording else []

    @property
    def size(self) -> int:
        """How many buckets there are."""
        return len(self._rows)

    def bucket(self, rows: int) -> int:
        """The smallest bucket that covers a step.

        Raises:
            ValueError: none does.
        """
        if rows > self.largest:
            raise ValueError(f"a step of {rows} rows: graphs are for {self.largest} at most")
        return next(step for step in self._rows if rows <= step)

    def recorded(self, rows: int) -> int | None:
        """The bucket whose graph the step runs on: its own, or a recorded one not much larger. None: run it eagerly."""
        best = min((each for each in self._recorded if rows <= each), default=None)
        if best is None or best > ROWS_FACTOR * self.bucket(rows):
            return None
        return best

    def ran_eagerly(self, rows: int, seconds: float) -> None:
        """Count a step that ran without a graph and kept the host busy for `seconds`."""
        bucket = self.bucket(rows)
        self._spent[bucket] = self._spent.get(bucket, 0.0) + seconds

    def ran_on(self, bucket: int, rows: int) -> None:
        """Count a step that ran on the graph of `bucket`, which may stand in for its own."""
        if self.bucket(rows) != bucket:
            self.ran_eagerly(rows, STAND_IN_SECONDS)

    def next(self) -> int | None:
        """What to record now: the costliest bucket, if it has cost more than a recording."""
        if not self._recording:
            return None
        bucket = max(self._spent, key=lambda each: (self._spent[each], each), default=None)
        return bucket if bucket is not None and self._spent[bucket] > self._cost else None

    def spent(self, bucket: int) -> float:
        """Seconds that a bucket has cost without a graph."""
        return self._spent.get(bucket, 0.0)

    def was_recorded(self, bucket: int, seconds: float) -> None:
        """Note that the bucket has a graph, which took `seconds` to record."""
        self._recorded.add(bucket)
        self._spent.pop(bucket, None)
        self._cost = seconds

    def failed(self, bucket: int, seconds: float) -> None:
        """Note that recording it failed, after `seconds`. Nothing is recorded until eager steps of one shape have cost ten times
        that, nor ever again after `MOST_FAILURES`: shapes without a graph keep running eagerly."""
        self.failures += 1
        self._spent[bucket] = 0.0
        self._cost = 10 * max(self._cost, seconds)
        self._recording = self._recording and self.failures < MOST_FAILURES
