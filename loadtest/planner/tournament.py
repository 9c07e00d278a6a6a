"""The highest rate that any layout sustains: bisection, in which only those stay that sustain what any of them sustains.

DistServe (Zhong et al., OSDI 2024, section 4) searches the rate of each placement by itself. Here only the best layout is asked
for, so one that fails at a rate which another sustains is not looked at again: its own rate is then known roughly, and its
bottleneck.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtest.planner.layout import Layout
from loadtest.planner.trial import TrialOutcome
from loadtest.search import Attained, RateSearch

Measure = Callable[[Sequence[tuple[Layout, float]]], Sequence[TrialOutcome]]


@dataclass(slots=True)
class Standing:
    """How a layout did.

    Attributes:
        layout: the layout.
        sustained: its trial at the highest rate that it sustained; None if it sustained none.
        failed: its trial at the lowest rate that it did not sustain; None if it sustained all.
    """

    layout: Layout
    sustained: TrialOutcome | None = None
    failed: TrialOutcome | None = None
    trials: list[TrialOutcome] = field(default_factory=list)

    def absorb(self, outcome: TrialOutcome, goal: float) -> bool:
        """Take in a trial. Returns whether the rate was sustained."""
        self.trials.append(outcome)
        good = outcome.attainment >= goal
        if good and (self.sustained is None or outcome.rate > self.sustained.rate):
            self.sustained = outcome
        if not good and (self.failed is None or outcome.rate < self.failed.rate):
            self.failed = outcome
        return good

    @property
    def goodput(self) -> float:
        """Requests per second within their objectives, at the highest rate that it sustained."""
        return self.sustained.goodput if self.sustained else 0.0


def tournament(
    layouts: Sequence[Layout], search: RateSearch, measure: Measure
) -> tuple[Standing | None, list[Standing]]:
    """Find the best layout.

    Args:
        layouts: all, the simplest first: of several that sustain the same rate within the search's precision, the first one wins.
        search: of the rate; one run decides.
        measure: simulates layouts at rates.

    Returns:
        The winner, None if none sustains any rate; and how all did, the best first.
    """
    standings = [Standing(layout) for layout in layouts]
    alive = standings
    while (rate := search.next_rate) is not None:
        outcomes = measure([(each.layout, rate) for each in alive])
        good = [each for each, outcome in zip(alive, outcomes, strict=True) if each.absorb(outcome, search.goal)]
        search.absorb(Attained(max(outcome.attainment for outcome in outcomes)))
        alive = good or alive
    winner = alive[0] if alive and alive[0].sustained is not None else None
    order = {id(each): place for place, each in enumerate(standings)}
    ranked = sorted(standings, key=lambda each: (each is not winner, -each.goodput, order[id(each)]))
    return winner, ranked
