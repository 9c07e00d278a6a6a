"""The highest rate that a server sustains: bisection over noisy measurements, without knowing what is measured.

Nothing here knows about servers or time: a `RateSearch` says which rate to measure next, and learns what share of requests met
their objective at it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, isfinite, sqrt


class End(StrEnum):
    """Why a search ended."""

    FOUND = "found"  # the next higher rate that was tried fails
    CLIENT = "client"  # the client could not drive the next higher rate
    HIGHEST = "highest"  # the highest rate that may be tried is sustained
    NONE = "none"  # not even the lowest is


@dataclass(slots=True)
class Trial:
    """A rate in requests per second, and the attainment of each run at it; `undriven`: the client could not drive it."""

    rate: float
    attainments: list[float] = field(default_factory=list)
    undriven: bool = False


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The outcome: the highest rate sustained and the lowest that is not (None if there is none), and why the search ended."""

    rate: float | None
    above: float | None
    end: End


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

    def absorb(self, attainment: float | None) -> None:
        """Take the attainment measured at `next_rate`; None if the client could not drive that rate.

        Raises:
            RuntimeError: the search has ended.
        """
        rate = self.next_rate
        if rate is None:
            raise RuntimeError("the search has ended: there was nothing to measure")
        if not self.trials or self.sustained(self.trials[-1]) is not None:
            self.trials.append(Trial(rate))
        trial = self.trials[-1]
        if attainment is None:
            trial.undriven = True
        else:
            trial.attainments.append(attainment)
        sustained = self.sustained(trial)
        if sustained:
            self._good = rate
        elif sustained is False:
            self._bad, self._undriven = rate, trial.undriven

    @property
    def found(self) -> SearchResult | None:
        """The outcome, once the search has ended; None before."""
        if self.next_rate is not None:
            return None
        if self._bad is None:
            return SearchResult(self._good, None, End.HIGHEST)
        if self._undriven:
            return SearchResult(self._good, self._bad, End.CLIENT)
        return SearchResult(self._good, self._bad, End.FOUND if self._good is not None else End.NONE)

    def sustained(self, trial: Trial) -> bool | None:
        """Whether the rate is sustained; None while the majority is open."""
        if trial.undriven:
            return False
        majority = ceil(self.repeats / 2)
        good = sum(attainment >= self.goal for attainment in trial.attainments)
        if good >= majority:
            return True
        return False if len(trial.attainments) - good >= majority else None


def in_turn(searches: Mapping[str, RateSearch], measure: Callable[[str, float, int], float | None]) -> None:
    """Run several searches to their ends, one measurement each in turn (A B A B), so that drift affects all alike.

    Args:
        searches: by name.
        measure: takes the name, the rate, and how many runs this search has had at that rate; returns the share of requests
            that met their objective, or None if the client could not drive the rate.
    """
    while any(search.next_rate is not None for search in searches.values()):
        for name, search in searches.items():
            rate = search.next_rate
            if rate is not None:
                last = search.trials[-1] if search.trials else None
                before = len(last.attainments) if last is not None and last.rate == rate else 0
                search.absorb(measure(name, rate, before))
