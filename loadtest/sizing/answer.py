"""The buyer's question answered: the cheapest fleet that keeps the objectives, and what a buyer asks next.

    search      the smallest fleet of each kind over the busiest stretch, as far as it could be cheaper than what was found before
    contest     of all fleets at that price the one with the most headroom: the highest load that any of them keeps
    proof       it keeps the goal over the whole load, and what is next cheaper does not; else the search goes on from there
    other loads what it attains at a higher load and with longer prompts, and how many engines these would take

Fewer engines of a kind are taken to attain less. KV in 8 bits loses precision, so it is only taken where it is cheaper. What is
known by any time, should nobody wait for the end, is `Buyer.so_far`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loadtest.report.rows import percent
from loadtest.search import Attained, RateSearch
from loadtest.sizing.candidates import FleetCandidates
from loadtest.sizing.fleet import AUTO, FP8, Fleet, FleetKind
from loadtest.sizing.load import Condition
from loadtest.sizing.pool import TrialPool
from loadtest.sizing.search import EngineSearch
from loadtest.sizing.trial import FleetOutcome, SizingTrial

HIGHER, LONGER = Condition(load=1.2), Condition(prompts=1.25)
_FIRST_LOAD, _MOST_LOAD = 1.2, 16.0  # of the search for the headroom, times the trace's
_OF_OTHERS = 2  # fleets of another kind that the contest has
_SAME = 1e-9  # prices that differ by less are equal
# What an answer leaves open that nobody waited for, by how far it came.
_SEARCHED = "other kinds of sets may be cheaper, and nothing was simulated over the whole load"
_CHOSEN = "nothing was simulated over the whole load"
_PROVED = "whether anything cheaper is enough was not found out to the end, nor what other loads would take"


@dataclass(frozen=True, slots=True)
class KindVerdict:
    """How a kind did over the busiest stretch.

    Attributes:
        engines: the smallest number that keeps the goal; None: none does that would be cheaper than what was found before.
        price: of these.
        why: a reason if there is none; empty: no number of them is cheaper, so none was tried.
    """

    kind: FleetKind
    engines: int | None
    price: float | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Headroom:
    """Over the busiest stretch.

    Attributes:
        held: the highest factor on the load that was kept.
        failed: what came of the lowest one that was not; None: the highest that was tried is kept.
    """

    held: float
    failed: FleetOutcome | None


@dataclass(frozen=True, slots=True)
class OtherLoad:
    """What another load would do.

    Attributes:
        outcome: of the fleet, over the whole load.
        enough: the smallest fleet of its kind that keeps the goal, over the busiest stretch; None: none does.
    """

    outcome: FleetOutcome
    enough: Fleet | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingAnswer:
    """The answer, or as much of it as was found before somebody interrupted.

    Attributes:
        best: the cheapest fleet that keeps the goal, over the whole load; or over the busiest stretch, as its trial says, where
            nobody waited for more.
        headroom: of it; None: not known yet.
        cheaper: the next cheaper fleet, over the whole load; None: there is nothing cheaper.
        fewer: the best one with an engine less, over the whole load; None: there is none, or it is the next cheaper one.
        others: other loads.
        kinds: how each kind did.
        equal: how far fleets of the same price keep the goal, each at the highest load that it kept.
        open: what was not found out, in words; empty: all was.
    """

    best: FleetOutcome
    headroom: Headroom | None = None
    cheaper: FleetOutcome | None = None
    fewer: FleetOutcome | None = None
    others: Sequence[OtherLoad] = ()
    kinds: Sequence[KindVerdict]
    equal: Sequence[tuple[Fleet, float]] = ()
    open: str = ""

    @property
    def price(self) -> float:
        """Of the best, an hour; of devices without a price their number."""
        return price(self.best.trial.fleet)


class Buyer:
    """Finds the answer.

    Args:
        pool: simulates.
        candidates: which fleets come into question.
        kinds: all, the simplest first.
        most: devices of a fleet.
        precision: of the headroom, relative.
        tell: told what goes on, in words.

    Attributes:
        verdicts: on the kinds that were tried.
        so_far: the answer as far as it is known; None: no fleet is known to keep the goal.
    """

    def __init__(
        self,
        pool: TrialPool,
        candidates: FleetCandidates,
        kinds: Sequence[FleetKind],
        *,
        most: int,
        precision: float = 0.1,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._pool = pool
        self._candidates = candidates
        self._kinds = kinds
        self._most = most
        self._precision = precision
        self._tell = tell
        self._search = EngineSearch(pool, candidates.fleets)
        self._refuted: set[Fleet] = set()  # over the whole load
        self._hopeless: set[FleetKind] = set()
        self.verdicts: list[KindVerdict] = []
        self.so_far: SizingAnswer | None = None

    def answer(self) -> SizingAnswer | None:
        """None: no fleet keeps the goal."""
        best = self._cheapest()
        if self.so_far is not None:
            self.so_far = replace(self.so_far, kinds=self.verdicts, open=_CHOSEN)
        while best is not None:
            fleet, headroom, equal = self._contest(best)
            self._tell(f"{fleet}: {headroom.held:.3g} x the load is kept; the whole load comes next")
            whole = self._pool.measure([SizingTrial(fleet, whole=True, to_the_end=True)])[0]
            if not self._pool.good(whole):
                self.so_far = None
                self._refuted.add(fleet)
                best = self._another(fleet)
                continue
            self.so_far = SizingAnswer(best=whole, headroom=headroom, kinds=self.verdicts, equal=equal, open=_PROVED)
            cheaper = self._next_cheaper(fleet)
            passing = self._whole_good(cheaper)
            if passing is None:
                self.so_far = self._completed(self.so_far, cheaper)
                return self.so_far
            best = passing
        return None

    def _whole_good(self, fleets: Sequence[Fleet]) -> Fleet | None:
        """The first that keeps the goal over the whole load; most of those that do not show it over the stretch."""
        outcomes = self._pool.measure([SizingTrial(each, lenient=True) for each in fleets])
        open_ones = [each.trial.fleet for each in outcomes if not each.stopped]
        found = self._pool.first_good([SizingTrial(each, whole=True) for each in open_ones])
        return None if found is None else found.trial.fleet

    def _cheapest(self) -> Fleet | None:
        """Over the busiest stretch."""
        best: Fleet | None = None
        for kind in sorted(self._kinds, key=self._guessed_price):
            most = min(kind.engines(self._most), max(kind.least, len(self._pool.bench.stretch)))  # one for each request
            if best is not None:
                most = min(most, self._below(kind, price(best)))
            if most < kind.least:
                self.verdicts.append(KindVerdict(kind, None, None))
                continue
            alone = self._candidates.alone(kind)
            if alone < self._pool.bench.goal:
                self._hopeless.add(kind)
                why = f"of requests that have an engine for themselves only {percent(alone)} meet the objectives"
                self.verdicts.append(KindVerdict(kind, None, None, why))
                continue
            found = self._search.smallest(kind, self._candidates.guess(kind), most)
            if found is None:
                more = "" if best is None else "; more are no cheaper"
                self.verdicts.append(KindVerdict(kind, None, None, f"not with {most}{more}"))
                continue
            best = found.outcome.trial.fleet
            self.verdicts.append(KindVerdict(kind, found.engines, price(best)))
            self.so_far = SizingAnswer(best=found.outcome, kinds=self.verdicts, open=_SEARCHED)
            self._tell(f"{best} keeps the goal over the busiest stretch")
        return best

    def _guessed_price(self, kind: FleetKind) -> tuple[float, bool]:
        """A kind with KV in 8 bits comes after the same one with more bits, which is taken if it is as cheap."""
        longer = replace(kind, gpu_kv=AUTO)
        like = longer if longer in self._kinds else kind
        return self._candidates.guess(like) * engine_price(kind), kind.gpu_kv == FP8

    def _below(self, kind: FleetKind, bound: float) -> int:
        """The largest number of engines that costs less."""
        each = engine_price(kind)
        engines = int(bound / each) + 1
        while engines > 0 and engines * each >= bound * (1 - _SAME):
            engines -= 1
        return engines

    def _contest(self, best: Fleet) -> tuple[Fleet, Headroom, list[tuple[Fleet, float]]]:
        """Of all fleets at the same price the one that keeps the goal at the highest load; of several the simplest."""
        alive = [fleet for fleet in self._at_price(best) if fleet not in self._refuted] or [best]
        plain = [fleet for fleet in alive if fleet.kind.gpu_kv != FP8]
        if self._pool.first_good([SizingTrial(fleet) for fleet in plain]) is not None:
            alive = plain
        search = RateSearch(
            start=_FIRST_LOAD,
            lowest=1.0,
            highest=_MOST_LOAD,
            goal=self._pool.bench.goal,
            precision=self._precision,
            repeats=1,
        )
        held: dict[Fleet, float] = {}
        while (load := search.next_rate) is not None:
            outcomes = self._pool.measure([SizingTrial(fleet, Condition(load=load)) for fleet in alive])
            good = [each.trial.fleet for each in outcomes if self._pool.good(each)]
            held |= {fleet: max(load, held.get(fleet, 0.0)) for fleet in good}
            search.absorb(Attained(max(each.attainment for each in outcomes)))
            alive = good or alive
        winner, above = alive[0], search.so_far.above
        trial = None if above is None else SizingTrial(winner, Condition(load=above))
        failed = None if trial is None else self._pool.measure([trial])[0]
        return winner, Headroom(search.so_far.rate or 1.0, failed), list(held.items())

    def _at_price(self, best: Fleet) -> list[Fleet]:
        found = []
        for kind in self._kinds:
            engines, rest = divmod(price(best), engine_price(kind))
            engines, rest = (engines + 1, 0.0) if engine_price(kind) - rest < _SAME * price(best) else (engines, rest)
            if rest > _SAME * price(best) or engines < kind.least:
                continue
            if kind.gpu_kv != FP8 or best.kind.gpu_kv == FP8:
                fleets = self._candidates.fleets(kind, int(engines))
                found += fleets if kind == best.kind else fleets[:_OF_OTHERS]
        return found

    def _another(self, fleet: Fleet) -> Fleet | None:
        """What to try when a fleet keeps the goal over the busiest stretch and not over the whole load."""
        rest = [each for each in self._at_price(fleet) if each not in self._refuted]
        if (passing := self._whole_good(rest)) is not None:
            return passing
        self._refuted.update(rest)
        more = len(fleet.roles) + 1
        found = self._search.smallest(fleet.kind, more, fleet.kind.engines(self._most), least=more, whole=True)
        if found is None:
            return None
        self.so_far = SizingAnswer(best=found.outcome, kinds=self.verdicts, open=_PROVED)
        return found.outcome.trial.fleet

    def _next_cheaper(self, fleet: Fleet) -> list[Fleet]:
        """Of each kind the largest number of engines that costs less, the dearest first.

        Where KV in 8 bits comes into question it stands for the same with more bits: every step of it is as fast or faster.
        """
        found: list[Fleet] = []
        for kind in self._kinds:
            engines = self._below(kind, price(fleet))
            shorter = replace(kind, gpu_kv=FP8)
            stands = kind == shorter or shorter not in self._kinds
            if engines >= kind.least and stands and kind not in self._hopeless:
                found += self._candidates.fleets(kind, engines)
        return sorted(found, key=price, reverse=True)

    def _completed(self, found: SizingAnswer, cheaper: Sequence[Fleet]) -> SizingAnswer:
        """The answer with what is next cheaper and what other loads would do."""
        fleet = found.best.trial.fleet
        self._tell(f"{fleet} keeps the goal over the whole load; what is next cheaper and other loads come last")
        next_one, engines = self._farthest(cheaper), len(fleet.roles) - 1
        fewer = self._farthest(self._candidates.fleets(fleet.kind, engines) if engines >= fleet.kind.least else [])
        below = [each for each in dict.fromkeys((next_one, fewer)) if each is not None]
        trials = [SizingTrial(fleet, each, whole=True, to_the_end=True) for each in (HIGHER, LONGER)]
        outcomes = self._pool.measure(trials + [SizingTrial(each, whole=True, to_the_end=True) for each in below])
        return replace(
            found,
            cheaper=outcomes[2] if next_one else None,
            fewer=outcomes[3] if len(below) > 1 else None,
            others=[OtherLoad(outcome, self._enough(outcome)) for outcome in outcomes[:2]],
            open="",
        )

    def _farthest(self, fleets: Sequence[Fleet]) -> Fleet | None:
        """Of the dearest fleets the one that came the farthest before the goal was out of reach."""
        dearest = [fleet for fleet in fleets if price(fleet) >= price(fleets[0]) * (1 - _SAME)]
        outcomes = self._pool.measure([SizingTrial(fleet, lenient=True) for fleet in dearest])
        return max(outcomes, key=lambda each: each.arrived).trial.fleet if outcomes else None

    def _enough(self, outcome: FleetOutcome) -> Fleet | None:
        """The smallest fleet of the same kind, set in the same way, that keeps the goal under that load."""
        fleet = outcome.trial.fleet
        if self._pool.good(outcome):
            return fleet
        search = EngineSearch(self._pool, lambda _, engines: [fleet.sized(engines)])
        more, most = len(fleet.roles) + 1, fleet.kind.engines(self._most)
        found = search.smallest(fleet.kind, more, most, outcome.trial.condition, least=more)
        return None if found is None else fleet.sized(found.engines)


def engine_price(kind: FleetKind) -> float:
    """Of one engine, an hour; of devices without a price their number."""
    return kind.devices * (kind.hardware.price_per_hour or 1.0)


def price(fleet: Fleet) -> float:
    """Of a fleet, an hour; of devices without a price their number."""
    return len(fleet.roles) * engine_price(fleet.kind)
