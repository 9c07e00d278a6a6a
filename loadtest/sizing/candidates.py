"""Which fleets come into question: their settings, how many engines to begin with, and which kinds no number of engines helps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from loadtest.report.records import Objective
from loadtest.simulate.content import length_of
from loadtest.simulate.cost import CostModel
from loadtest.sizing.fleet import Fleet, FleetKind, Tuning
from loadtest.sizing.trial import SizingBench
from loadtest.sizing.tunings import Lengths, busy_seconds, decode_seconds, prefill_seconds, tunings
from loadtest.workload.plan import Planned
from scheduler.router.view import Role

_BUSY = 0.8  # share of the time that engines compute in the first number that is tried
_SPLIT_TUNINGS = 2


@dataclass(slots=True)
class FleetCandidates:
    """All fleets of each kind.

    Args:
        bench: the load and what runs.
        budgets, running: settings to try; None: those that fit the device.
    """

    bench: SizingBench
    budgets: Sequence[int] | None = None
    running: Sequence[int] | None = None
    _tunings: dict[FleetKind, list[Tuning]] = field(default_factory=dict)

    @property
    def lengths(self) -> Lengths:
        """Of an average request of the stretch."""
        return Lengths.of(self.bench.stretch)

    def fleets(self, kind: FleetKind, engines: int) -> list[Fleet]:
        """Those with so many engines, the most promising first."""
        settings = self.tunings(kind)
        if not kind.split:
            return [Fleet(kind, (Role.MIXED,) * engines, each) for each in settings]
        share = engines * self._prefill_share(kind)
        least, most = 1, engines - 1
        counts = dict.fromkeys(min(max(each, least), most) for each in (round(share), ceil(share), int(share)))
        return [
            Fleet(kind, (Role.PREFILL,) * many + (Role.DECODE,) * (engines - many), each)
            for each in settings[:_SPLIT_TUNINGS]
            for many in counts
        ]

    def tunings(self, kind: FleetKind) -> list[Tuning]:
        """The settings of a kind, the most promising first."""
        if kind not in self._tunings:
            cost, server = kind.cost(self.bench.model), self.bench.server
            blocks = server.kv_blocks or cost.kv_blocks(server.block_size)
            self._tunings[kind] = tunings(
                cost,
                list(self.bench.objectives.values()),
                self.lengths,
                blocks * server.block_size,
                budgets=self.budgets,
                running=self.running,
            )
        return self._tunings[kind]

    def guess(self, kind: FleetKind) -> int:
        """Engines that would compute four fifths of the time; no more than requests."""
        stretch = self.bench.stretch
        seconds = max(stretch[-1].intended - stretch[0].intended, 1e-3)
        busy = busy_seconds(kind.cost(self.bench.model), self.tunings(kind)[0], self.lengths) * len(stretch)
        return max(kind.least, min(ceil(busy / seconds / _BUSY), len(stretch)))

    def alone(self, kind: FleetKind) -> float:
        """The share of the requests that would meet their objectives if each had an engine for itself."""
        cost, chunk = kind.cost(self.bench.model), self.tunings(kind)[0].max_step_tokens
        judged = [(each, found) for each in self.bench.stretch if (found := self._objective(each)) is not None]
        return sum(_meets_alone(cost, chunk, *each) for each in judged) / len(judged) if judged else 1.0

    def _objective(self, request: Planned) -> Objective | None:
        return self.bench.objectives.get(request.klass) or self.bench.objectives.get("default")

    def _prefill_share(self, kind: FleetKind) -> float:
        """Of the work that is prompts."""
        cost, tuning, lengths = kind.cost(self.bench.model), self.tunings(kind)[0], self.lengths
        prompts = lengths.prompt * prefill_seconds(cost, tuning.max_step_tokens) / tuning.max_step_tokens
        return prompts / busy_seconds(cost, tuning, lengths)


def _meets_alone(cost: CostModel, chunk: int, request: Planned, objective: Objective) -> bool:
    prompt, costs = length_of(request), cost.costs
    whole, rest = divmod(prompt, chunk)
    first = costs.request + costs.delivery + whole * prefill_seconds(cost, chunk)
    first += prefill_seconds(cost, rest) if rest else 0.0
    pace = decode_seconds(cost, 1, Lengths(prompt, request.output_tokens)) if request.output_tokens > 1 else 0.0
    end = first + pace * (request.output_tokens - 1)
    pairs = ((objective.ttft, first), (objective.tpot, pace), (objective.e2e, end))
    return all(bound is None or value <= bound for bound, value in pairs)
