"""A run over time: what happened in each of its windows."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loadtest.report.columns import Columns
from loadtest.report.events import Events, Floats, Ints
from loadtest.report.metrics import PERCENTILES
from loadtest.report.records import LoadRun

WINDOWS = 90  # about as many as a plot as wide as the page can show
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)


def width_for(duration: float, windows: int = WINDOWS) -> float:
    """A round width in seconds that cuts `duration` into at most `windows` windows."""
    return float(next((step for step in STEPS if duration / step <= windows), duration / windows))


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Columns of shape [windows], times in seconds, rates per second.

    Attributes:
        start: of each window.
        width: of every window.
        arrivals: requests that the plan wanted sent.
        completions, failures: requests that ended with a complete answer, and without one.
        output_rate: output tokens, when they came.
        prompt_rate: prompt tokens, when the request's first token came.
        judged, good: arrivals that an objective judges, and those that met it.
        ttft, itl: percentile -> values, by the window of the intended time and of the gap's end; NaN if there are none.
    """

    start: Floats
    width: float
    arrivals: Floats
    completions: Floats
    failures: Floats
    output_rate: Floats
    prompt_rate: Floats
    judged: Floats
    good: Floats
    ttft: dict[int, Floats]
    itl: dict[int, Floats]

    @classmethod
    def of(cls, run: LoadRun, columns: Columns, width: float | None = None) -> "Series":
        """Cut the run into windows of `width` seconds, or as many as a plot can show."""
        end = max([run.duration, *columns.ended.tolist(), *columns.intended.tolist()])
        width = width or width_for(end)
        edges: Floats = np.arange(int(end / width) + 2, dtype=np.float64) * width
        whole, judged = columns.whole, columns.judged
        prompts = np.nan_to_num(columns.prompt)

        def rate(times: Floats, weights: Floats | None = None) -> Floats:
            return np.histogram(times, edges, weights=weights)[0] / width

        seen = np.isfinite(columns.first)
        return cls(
            start=edges[:-1],
            width=width,
            arrivals=rate(columns.intended),
            completions=rate(columns.ended[whole]),
            failures=rate(columns.ended[columns.failed]),
            output_rate=tokens_of(columns.events, edges) / width,
            prompt_rate=rate(columns.first[seen], prompts[seen]),
            judged=rate(columns.intended[judged]),
            good=rate(columns.intended[judged & (columns.needed <= 1)]),
            ttft=percentiles(columns.intended[seen], columns.ttft[seen], edges),
            itl=gap_percentiles(columns.events, edges),
        )


class WindowedValues:
    """Values, put together by the window of a run into which they fall.

    Args:
        counts: [windows] how many there will be in each.
    """

    def __init__(self, counts: Ints) -> None:
        self._ends = np.cumsum(counts)
        self._values = np.empty(int(counts.sum()))
        self._filled = self._ends - counts

    def add(self, window: Ints, values: Floats) -> None:
        """Some of the values, and the window of each."""
        order = np.argsort(window.astype(np.min_scalar_type(self._ends.size)), kind="stable")
        ordered, counts = values[order], np.bincount(window, minlength=self._ends.size)
        begin = 0
        for place in np.flatnonzero(counts):
            size, at = counts[place], self._filled[place]
            self._values[at : at + size] = ordered[begin : begin + size]
            begin += size
        self._filled += counts

    def percentiles(self) -> dict[int, Floats]:
        """Percentile -> [windows] that of the values of each; NaN for an empty one. All values have been added."""
        rows = np.full((self._ends.size, len(PERCENTILES)), np.nan)
        for row, (begin, end) in zip(rows, pairwise([0, *self._ends.tolist()]), strict=True):
            if end > begin:
                row[:] = np.percentile(self._values[begin:end], PERCENTILES, overwrite_input=True)
        return {percent: rows[:, place] for place, percent in enumerate(PERCENTILES)}


def windows_of(times: Floats, edges: Floats) -> Ints:
    """The window of each time; what comes before the first belongs to it, what comes after the last to that."""
    return np.searchsorted(edges[1:-1], times, side="right")


def percentiles(times: Floats, values: Floats, edges: Floats) -> dict[int, Floats]:
    """Percentile -> [windows] that of the values whose times fall into each window; NaN for an empty window."""
    window = windows_of(times, edges)
    found = WindowedValues(np.bincount(window, minlength=edges.size - 1))
    found.add(window, values)
    return found.percentiles()


def tokens_of(events: Events, edges: Floats) -> Floats:
    """[windows] the tokens that came in each."""
    tokens = np.zeros(edges.size - 1)
    for piece in events.pieces():
        inside = (edges[0] <= piece.at) & (piece.at <= edges[-1])
        tokens += np.bincount(windows_of(piece.at[inside], edges), piece.count[inside], minlength=tokens.size)
    return tokens


def gap_percentiles(events: Events, edges: Floats) -> dict[int, Floats]:
    """`percentiles` of all gaps, each in the window in which it ended: counted first, so that no more is kept than the gaps."""
    counts = np.zeros(edges.size - 1, dtype=np.int64)
    for piece in events.pieces():
        counts += np.bincount(windows_of(piece.at[piece.later], edges), minlength=counts.size)
    found = WindowedValues(counts)
    for piece in events.pieces():
        found.add(windows_of(piece.at[piece.later], edges), piece.gaps)
    return found.percentiles()


def thinned(size: int, most: int) -> slice:
    """A slice that takes every n-th of `size` points, so that at most `most` are drawn."""
    return slice(None, None, max(1, -(-size // most)))
