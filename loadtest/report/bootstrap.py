"""How certain a figure of a run is: the circular block bootstrap.

Neighbouring requests wait for each other, so they are not independent draws, and resampling them one by one would claim too much
certainty. Whole blocks of neighbours are resampled instead (Politis and Romano 1992, "A circular block-resampling procedure
for stationary data"); a block is as long as the cube root of the run, or the most requests ever in flight together.

A resample is an array of weights: how often each request was drawn. Percentiles under weights equal numpy's of the values
repeated that often, without repeating them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cbrt

import numpy as np

from loadtest.report.columns import Columns, concurrency
from loadtest.report.events import Floats, Ints
from loadtest.report.records import LoadRun

PARTS = 40  # windows by which a run's rates are resampled
MOST_VALUES = 100_000  # gaps looked at; if there are more, every n-th
TAIL = 5  # a percentile is given only if at least this many values lie beyond it


@dataclass(frozen=True, slots=True)
class Resample:
    """How often each request and each window of a run was drawn: [requests], [windows]."""

    requests: Ints
    windows: Ints


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a run.

    Attributes:
        name: with its unit, as tables show it.
        more_is_better: which direction is good.
        share: whether it is a fraction of 1, whose differences are given in percentage points.
        enough: whether the run has enough values for it to mean something.
        under: its value under a resample; NaN if nothing was drawn.
    """

    name: str
    more_is_better: bool
    share: bool
    enough: bool
    under: Callable[[Resample], float]


class Sample:
    """Values that belong to requests, sorted once, for percentiles under many weights."""

    def __init__(self, values: Floats, owners: Ints) -> None:
        known = np.isfinite(values)
        values, owners = values[known], owners[known]
        order = np.argsort(values, kind="stable")
        self._values, self._owners = values[order], owners[order]

    def __len__(self) -> int:
        return int(self._values.size)

    def percentile(self, percent: float, weights: Ints) -> float:
        """numpy's percentile of the values, each repeated as often as its request's weight says; NaN if there are none."""
        ends = np.cumsum(weights[self._owners])
        if not ends.size or ends[-1] == 0:
            return float("nan")
        place = (ends[-1] - 1) * percent / 100
        below = int(place)
        above = min(below + 1, int(ends[-1]) - 1)
        low, high = self._values[np.searchsorted(ends, [below, above], side="right")]
        return float(low + (high - low) * (place - below))


def block_weights(rng: np.random.Generator, size: int, block: int) -> Ints:
    """Draw `size` items in circular blocks of `block`. Returns how often each was drawn: [size], with sum `size`."""
    starts = rng.integers(0, size, -(-size // block))
    places = (starts[:, None] + np.arange(block)).ravel()[:size] % size
    return np.bincount(places, minlength=size)


def request_block(columns: Columns) -> int:
    """How many neighbouring requests are drawn together."""
    size = columns.intended.size
    together = int(concurrency(columns.intended, columns.ended)[1].max(initial=1))
    cube_root = round(cbrt(size))
    return max(1, min(size // 10, max(cube_root, together)))


class ComparedRun:
    """A run with the figures that are compared, each computable under a resample."""

    def __init__(self, run: LoadRun) -> None:
        self.run = run
        counted = run.measured
        self.columns = Columns.of(counted)
        self.size = len(counted.records)
        self.block = request_block(self.columns)
        self.figures = [*_percentiles(self.columns), *_shares(counted, self.columns), *_rates(run, Columns.of(run))]

    def whole(self) -> Resample:
        """Every request and window once: gives the run's own figures."""
        return Resample(np.ones(self.size, dtype=np.int64), np.ones(PARTS, dtype=np.int64))

    def draw(self, rng: np.random.Generator, block: int) -> Resample:
        """One resample of the run, with requests drawn in blocks of `block`."""
        windows = block_weights(rng, PARTS, round(PARTS ** (1 / 3)))
        return Resample(block_weights(rng, self.size, block), windows)


_PERCENTILES = (
    ("TTFT", "ttft", (50, 90, 99)),
    ("TPOT", "tpot", (50, 90, 99)),
    ("ITL", "itl", (50, 90, 99)),
    ("e2e", "e2e", (50, 99)),
    ("server queue", "queue", (50, 99)),
)


def _percentiles(columns: Columns) -> list[Figure]:
    figures = []
    for title, name, percents in _PERCENTILES:
        sample = _sample(columns, name)
        for percent in percents:
            enough = len(sample) * (100 - percent) / 100 >= TAIL
            figures.append(Figure(f"{title} p{percent} (ms)", False, False, enough, _percentile(sample, percent)))
    return figures


def _sample(columns: Columns, name: str) -> Sample:
    """The values of complete answers."""
    if name == "itl":
        gaps = columns.events.gaps(columns.whole)
        step = max(1, -(-gaps.size // MOST_VALUES))
        return Sample(gaps[::step], columns.events.gap_owners(columns.whole, step))
    values = columns.timings[name] if name in columns.timings else getattr(columns, name)
    places = np.flatnonzero(columns.whole)
    return Sample(values[places], places)


def _percentile(sample: Sample, percent: int) -> Callable[[Resample], float]:
    return lambda drawn: 1000 * sample.percentile(percent, drawn.requests)


def _shares(run: LoadRun, columns: Columns) -> list[Figure]:
    unfit = np.array([not record.fits for record in run.records], dtype=np.float64)
    bad = np.array([bool(record.violations) for record in run.records], dtype=np.float64)
    awaited = columns.awaited.astype(np.float64)
    told = columns.whole & np.isfinite(columns.cached) & np.isfinite(columns.prompt)
    rows: list[tuple[str, bool, Floats, Floats]] = [
        (
            "attainment",
            True,
            (columns.judged & (columns.needed <= 1)).astype(np.float64),
            columns.judged.astype(np.float64),
        ),
        ("failed", False, columns.failed.astype(np.float64), awaited),
        ("longer than the context", False, unfit, np.ones(len(run.records))),
        ("broke a rule", False, bad, awaited),
        ("cached share", True, np.where(told, columns.cached, 0.0), np.where(told, columns.prompt, 0.0)),
    ]
    return [Figure(name, more, True, bool(of.any()), _share(part, of)) for name, more, part, of in rows]


def _share(part: Floats, of: Floats) -> Callable[[Resample], float]:
    def under(drawn: Resample) -> float:
        whole = float(drawn.requests @ of)
        return float(drawn.requests @ part) / whole if whole else float("nan")

    return under


def _rates(run: LoadRun, columns: Columns) -> list[Figure]:
    """Amounts per second, resampled by windows of the run: resampling requests would ignore how long the run took."""
    last = float(max([run.duration, *columns.ended.tolist()], default=0.0))
    begin, end = max(0.0, run.window[0]), min(last if last > 0 else 1.0, run.window[1])
    edges = np.linspace(begin, end, PARTS + 1)
    duration = run.measured.duration
    good = columns.judged & (columns.needed <= 1)
    rows: Sequence[tuple[str, Floats, Floats]] = (
        ("requests/s", columns.ended[columns.whole], np.ones(int(columns.whole.sum()))),
        ("output tokens/s", columns.ended[columns.whole], columns.output[columns.whole]),
        ("goodput (requests/s)", columns.ended[good], np.ones(int(good.sum()))),
    )
    enough = duration > 0
    judged = bool(columns.judged.any())
    return [
        Figure(name, True, False, enough and (judged or "goodput" not in name), _rate(at, amount, edges, duration))
        for name, at, amount in rows
    ]


def _rate(at: Floats, amount: Floats, edges: Floats, duration: float) -> Callable[[Resample], float]:
    windows = np.histogram(at, edges, weights=amount)[0]
    return lambda drawn: float(drawn.windows @ windows) / duration if duration > 0 else float("nan")
