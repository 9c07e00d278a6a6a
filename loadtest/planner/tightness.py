"""Goodput over the tightness of objectives: where engines that do all win, and where those do that are split by phase.

DistServe (Zhong et al., OSDI 2024, section 6.2) draws it: all bounds times a scale. A trial is simulated once and judged by every
scale, so routers keep to no bound here: they send a request where its first token is expected the soonest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loadtest.planner.layout import Layout
from loadtest.planner.tournament import Standing, tournament
from loadtest.planner.trial import Observation, TrialOutcome, Workbench, judge
from loadtest.report.records import Objective
from loadtest.report.rows import Section, figure, percent
from loadtest.search import RateSearch

Observe = Callable[[Sequence[tuple[Layout, float]]], Sequence[Observation]]


@dataclass(frozen=True, slots=True)
class TightnessRow:
    """One scale.

    Attributes:
        scale: that multiplies all bounds.
        mixed, split: the best layout of engines that do all, and of those that do not; None: none meets them at any rate.
    """

    scale: float
    mixed: Standing | None
    split: Standing | None

    @property
    def gain(self) -> float | None:
        """Goodput of the best split layout over that of the best mixed one."""
        return self.split.goodput / self.mixed.goodput if self.mixed and self.split else None


class Tightness:
    """Searches the best rates for several scales; each layout is simulated at each rate once.

    Args:
        bench: with the objectives at scale 1.
        layouts: all that come into question.
        search: makes the search of a rate. All begin at the same one, so that they meet at the same rates.
        observe: simulates layouts at rates.
    """

    def __init__(
        self, bench: Workbench, layouts: Sequence[Layout], search: Callable[[], RateSearch], observe: Observe
    ) -> None:
        self._bench = bench
        self._layouts = layouts
        self._search = search
        self._observe = observe
        self._seen: dict[tuple[Layout, float], Observation] = {}

    def row(self, scale: float) -> TightnessRow:
        """The best layouts at one scale."""
        objectives = {name: _scaled(each, scale) for name, each in self._bench.objectives.items()}
        bench = replace(self._bench, objectives=objectives)
        best: list[Standing | None] = []
        for split in (False, True):
            layouts = [layout for layout in self._layouts if layout.split == split]
            best.append(self._best(bench, layouts) if layouts else None)
        return TightnessRow(scale, *best)

    def _best(self, bench: Workbench, layouts: Sequence[Layout]) -> Standing | None:
        return tournament(layouts, self._search(), lambda pairs: self._measure(bench, pairs))[0]

    def _measure(self, bench: Workbench, pairs: Sequence[tuple[Layout, float]]) -> list[TrialOutcome]:
        new = [pair for pair in pairs if pair not in self._seen]
        self._seen.update(zip(new, self._observe(new), strict=True))
        return [judge(bench, self._seen[pair]) for pair in pairs]


def tightness_table(rows: Sequence[TightnessRow], bench: Workbench, goal: float) -> Section:
    """Rates in requests per second within their objectives."""
    header = ("scale", "objectives", "best mixed", "goodput", "best split", "goodput", "split / mixed")
    cells = [
        (
            f"{row.scale:g}",
            "; ".join(_words(_scaled(each, row.scale)) for each in bench.objectives.values()),
            *_best(row.mixed),
            *_best(row.split),
            "" if row.gain is None else f"{row.gain:.2f}",
        )
        for row in rows
    ]
    return Section(f"Goodput over tightness, at {percent(goal)} attainment", header, cells)


def _best(standing: Standing | None) -> tuple[str, str]:
    if standing is None:
        return "none", "0"
    gpus = standing.layout.devices
    return f"{standing.layout}" + (f" of {gpus} GPUs" if gpus > 1 else ""), figure(standing.goodput)


def _scaled(objective: Objective, scale: float) -> Objective:
    bounds = (objective.ttft, objective.tpot, objective.e2e)
    return Objective(*(None if bound is None else scale * bound for bound in bounds))


def _words(objective: Objective) -> str:
    pairs = (("ttft", objective.ttft), ("tpot", objective.tpot), ("e2e", objective.e2e))
    return ", ".join(f"{name}={1000 * bound:g}ms" for name, bound in pairs if bound is not None)
