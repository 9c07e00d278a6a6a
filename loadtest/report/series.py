"""A run over time: what happened in each of its windows."""

from dataclasses import dataclass

import numpy as np

from loadtest.report.columns import Columns, Floats
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
            output_rate=rate(columns.token_at, columns.token_count),
            prompt_rate=rate(columns.first[seen], prompts[seen]),
            judged=rate(columns.intended[judged]),
            good=rate(columns.intended[judged & (columns.needed <= 1)]),
            ttft=percentiles(columns.intended[seen], columns.ttft[seen], edges),
            itl=percentiles(columns.gap_at, columns.gap, edges),
        )


def percentiles(times: Floats, values: Floats, edges: Floats) -> dict[int, Floats]:
    """Percentile -> [windows] that of the values whose times fall into each window; NaN for an empty window."""
    order = np.argsort(times, kind="stable")
    parts = np.split(values[order], np.searchsorted(times[order], edges[1:-1]))
    rows = np.array([np.percentile(part, PERCENTILES) if part.size else [np.nan] * len(PERCENTILES) for part in parts])
    return {percent: rows[:, place] for place, percent in enumerate(PERCENTILES)}


def thinned(size: int, most: int) -> slice:
    """A slice that takes every n-th of `size` points, so that at most `most` are drawn."""
    return slice(None, None, max(1, -(-size // most)))
