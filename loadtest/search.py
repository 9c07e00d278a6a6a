"""The highest rate that a server sustains: bisection over noisy measurements, without knowing what is measured.

Nothing here knows about servers or time: a `RateSearch` says which rate to measure next, and learns what share of requests met
their objective at it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import ceil, inf, isfinite, sqrt

PATIENCE = (
    3  # runs in a row that the client could not drive, until it is believed that it cannot: the first may be a hiccup
)
_Z = 1.96  # of a normal distribution's 95 %


class End(StrEnum):
    """Why a search ended."""

    FOUND = "found"  # the next higher rate that was tried fails
    CLIENT = "client"  # the client could not drive the next higher rate
    HIGHEST = "highest"  # the highest rate that may be tried is sustained
    NONE = "none"  # not even the lowest is
    INTERRUPTED = "interrupted"  # nobody waited for the end

    @property
    def told(self) -> bool:
        """Whether it is the server's doing, so that the search says something of it."""
        return self not in (End.CLIENT, End.INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Attained:
    """What share of a run's requests met their objective, and how many independent requests tell as much."""

    share: float
    requests: float = inf

    @classmethod
    def of(cls, met: Sequence[bool]) -> "Attained":
        """Of a run's requests in their order.

        Neighbours wait for each other, so they are no independent draws: n of them whose verdicts have the correlation r with the
        next one's tell as much as n (1 - r) / (1 + r) (the effective size of a first-order autoregressive sample).
        """
        many, share = len(met), sum(met) / len(met)
        spread = share * (1 - share)
        if many < 2 or spread == 0:
            return cls(share, many)
        pairs = pairwise(met)
        correlation = sum((one - share) * (other - share) for one, other in pairs) / ((many - 1) * spread)
        r = min(max(correlation, 0.0), 0.99)
        return cls(share, max(1.0, many * (1 - r) / (1 + r)))


@dataclass(slots=True)
class Trial:
    """A rate in requests per second, what each run attained at it, and how many runs in a row the client could not drive."""

    rate: float
    runs: list[Attained] = field(default_factory=list)
    failed: int = 0

    @property
    def attainments(self) -> list[float]:
        """The share of each run."""
        return [run.share for run in self.runs]

    @property
    def undriven(self) -> bool:
        """Whether the client cannot drive this rate."""
        return self.failed >= PATIENCE

    @property
    def interval(self) -> tuple[float, float]:
        """Where the attainment lies at 95 %, by all runs together: Wilson's interval (1927), which holds for shares near 1, too."""
        many = sum(run.requests for run in self.runs)
        if not self.runs or not isfinite(many):
            share = sum(self.attainments) / len(self.runs) if self.runs else None
            return (0.0, 1.0) if share is None else (share, share)
        share = sum(run.share * run.requests for run in self.runs) / many
        middle, bound = share + _Z**2 / (2 * many), _Z * sqrt(share * (1 - share) / many + _Z**2 / (4 * many**2))
        whole = 1 + _Z**2 / many
        return max(0.0, (middle - bound) / whole), min(1.0, (middle + bound) / whole)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The outcome.

    Attributes:
        rate: the highest that is sustained; None if none is.
        above: the lowest that is not; None if all are that were tried.
        end: why the search ended.
        sure: the highest rate whose whole interval reaches the goal, and the lowest whose whole interval does not.
    """

    rate: float | None
    above: float | None
    end: End
    sure: tuple[float | None, float | None] = (None, None)


@dataclass(slots=True, kw_only=True)
class RateSearch:
    """Finds the highest rate at which at least `goal` of the requests meet their objective.

    The rate doubles from `start` until it is not sustained (or halves until it is); the gap is then bisected geometrically
    until it is at most `precision`. A rate is sustained if most of `repeats` runs at it reach the goal; fewer runs suffice
    if they agree.

    Attributes:
        start, lowest, highest: requests per second.
        goal: share from 0 to 1.
        precision: relative: 0.05 stops at 5 %.
        repeats: odd, so that there is a majority.
        trials: what was measured, in order.
    """

    start: float = 1.0
    lowest: float = 0.01
    highest: float = 10_000.0
    goal: float = 0.9
    precision: float = 0.05
    repeats: int = 3
    trials: list[Trial] = field(default_factory=list)
    _good: float | None = None
    _bad: float | None = None
    _undriven: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.lowest <= self.start <= self.highest or not isfinite(self.highest):
            raise ValueError(
                f"rates must be 0 < {self.lowest} (lowest) <= {self.start} (start) <= {self.highest} (highest)"
            )
        if not 0 < self.goal <= 1:
            raise ValueError(f"the goal must be a share above 0 and at most 1, not {self.goal}")
        if not self.precision > 0:
            raise ValueError(f"the precision must be above 0, not {self.precision}")
        if self.repeats < 1 or self.repeats % 2 == 0:
            raise ValueError(f"the number of repeats must be odd, so that there is a majority, not {self.repeats}")

    @property
    def next_rate(self) -> float | None:
        """The rate to measure next, in requests per second; None when the search has ended."""
        if self.trials and self.sustained(self.trials[-1]) is None:
            return self.trials[-1].rate
        if self._good is None and self._bad is None:
            return self.start
        if self._bad is None:
            assert self._good is not None
            return min(2 * self._good, self.highest) if self._good < self.highest else None
        if self._good is None:
            return max(self._bad / 2, self.lowest) if self._bad > self.lowest else None
        between = sqrt(self._good) * sqrt(self._bad)  # the product itself might overflow
        apart = self._bad / self._good > 1 + self.precision and self._good < between < self._bad
        return between if apart else None

    def absorb(self, attained: Attained | None) -> None:
        """Take what was attained at `next_rate`; None if the client could not drive that rate, which is then tried again.

        Raises:
            RuntimeError: the search has ended.
        """
        rate = self.next_rate
        if rate is None:
            raise RuntimeError("the search has ended: there was nothing to measure")
        if not self.trials or self.sustained(self.trials[-1]) is not None:
            self.trials.append(Trial(rate))
        trial = self.trials[-1]
        if attained is None:
            trial.failed += 1
        else:
            trial.failed = 0
            trial.runs.append(attained)
        sustained = self.sustained(trial)
        if sustained:
            self._good = rate
        elif sustained is False:
            self._bad, self._undriven = rate, trial.undriven

    @property
    def found(self) -> SearchResult | None:
        """The outcome, once the search has ended; None before."""
        return None if self.next_rate is not None else self.so_far

    @property
    def so_far(self) -> SearchResult:
        """What is known by now; `INTERRUPTED` unless the search has ended."""
        sure = [trial for trial in self.trials if trial.runs]
        held = (trial.rate for trial in sure if trial.interval[0] >= self.goal)
        failed = (trial.rate for trial in sure if trial.interval[1] < self.goal)
        return SearchResult(self._good, self._bad, self._end, (max(held, default=None), min(failed, default=None)))

    @property
    def _end(self) -> End:
        if self.next_rate is not None:
            return End.INTERRUPTED
        if self._bad is None:
            return End.HIGHEST
        if self._undriven:
            return End.CLIENT
        return End.FOUND if self._good is not None else End.NONE

    def near(self, rate: float) -> bool:
        """Whether the runs so far at a rate leave open on which side of the goal it is: more requests would say."""
        trial = next((each for each in self.trials if each.rate == rate and each.runs), None)
        return trial is not None and trial.interval[0] < self.goal <= trial.interval[1]

    def sustained(self, trial: Trial) -> bool | None:
        """Whether the rate is sustained; None while the majority is open."""
        if trial.undriven:
            return False
        majority = ceil(self.repeats / 2)
        good = sum(attainment >= self.goal for attainment in trial.attainments)
        if good >= majority:
            return True
        return False if len(trial.attainments) - good >= majority else None


def in_turn(searches: Mapping[str, RateSearch], measure: Callable[[str, float, int], Attained | None]) -> None:
    """Run several searches to their ends, one measurement each in turn (A B A B), so that drift affects all alike.

    Args:
        searches: by name.
        measure: takes the name, the rate, and how many runs this search has had at that rate; returns what share of requests
            met their objective, or None if the client could not drive the rate.
    """
    while any(search.next_rate is not None for search in searches.values()):
        for name, search in searches.items():
            rate = search.next_rate
            if rate is not None:
                last = search.trials[-1] if search.trials else None
                before = len(last.runs) + last.failed if last is not None and last.rate == rate else 0
                search.absorb(measure(name, rate, before))
