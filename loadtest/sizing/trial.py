"""A fleet simulated under a load: which requests met their objectives, how busy its engines were, and what it costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import floor

import numpy as np

from loadtest.report.records import Objective, RequestRecord
from loadtest.simulate.cluster import Cluster, Machines, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.options import switching_pool
from loadtest.simulate.specs import ModelSpec
from loadtest.sizing.fleet import Fleet
from loadtest.sizing.load import Condition
from loadtest.sizing.watch import Gauge, OutOfReach, SimulationWatch
from loadtest.workload.plan import Planned
from scheduler.router.policies import make_router
from scheduler.router.view import Role

AS_IT_IS = Condition()


@dataclass(frozen=True, slots=True, kw_only=True)
class SizingBench:
    """What all trials have in common.

    Attributes:
        requests: the whole load, in the order of arrival.
        stretch: the part of it with which most trials are made.
        warm_up, cool_down: seconds of the whole at its ends that are not judged.
        model: what runs.
        server: settings of each engine beside its tuning.
        router: name of the routing policy.
        objectives: by class.
        goal: share of the requests that must meet them.
        machines: what engines of this cost run on.
        bandwidth: bytes per second at which an engine hands KV over; None: that of its device's host tier.
        latency: seconds that a hand-over takes beside that.
    """

    requests: Sequence[Planned]
    stretch: Sequence[Planned]
    warm_up: float
    cool_down: float
    model: ModelSpec
    server: ServerShape
    router: str
    objectives: dict[str, Objective]
    goal: float
    machines: Callable[[CostModel], Machines]
    bandwidth: float | None
    latency: float


@dataclass(frozen=True, slots=True)
class SizingTrial:
    """What is to be simulated.

    Attributes:
        whole: the whole load, or its stretch.
        to_the_end: also when the goal is out of reach.
        lenient: as many requests may miss their objective over the stretch as may over the whole load. A fleet that does not even
            keep this cannot keep the goal over the whole load.
    """

    fleet: Fleet
    condition: Condition = AS_IT_IS
    whole: bool = False
    to_the_end: bool = False
    lenient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOutcome:
    """What came of a trial. Of one that was stopped, the figures are those of the part that was simulated.

    Attributes:
        arrived, planned: requests.
        judged: of them by an objective.
        met: those that met it; of a trial that was stopped, those that may have.
        late_first, late_pace, failed: those that missed the bound on the first token, that on the time between tokens, and those
            without a complete answer.
        unfit: longer than the context.
        stopped: whether it ended because the goal was out of reach.
        seconds: from the first arrival to the last token.
        utilisation: share of that time for which engines computed, however little: decodes of one request are enough.
        peak_share: of the device's peak operations that went into matrix products (model FLOPs utilisation, MFU).
        ttft, tpot: p50 and p99 of complete answers, in seconds.
        output_rate, token_rate: tokens of complete answers, and of these with their prompts, per second.
        cached: share of the prompts found in a prefix cache.
        preemptions: of all engines.
        balance: tokens of the engine with the most over the mean, of engines with one role; 1: all have the same.
        gauges: as they were, evenly over the arrivals.
    """

    trial: SizingTrial
    arrived: int
    planned: int
    judged: int
    met: int
    late_first: int
    late_pace: int
    failed: int
    unfit: int
    stopped: bool
    seconds: float
    utilisation: float
    peak_share: float
    ttft: tuple[float, float] | None
    tpot: tuple[float, float] | None
    output_rate: float
    token_rate: float
    cached: float
    preemptions: int
    balance: float
    gauges: Sequence[Gauge]

    @property
    def attainment(self) -> float:
        """Share of the judged requests that met their objective; of a trial that was stopped, the most that it can still be."""
        return self.met / self.judged if self.judged else 0.0

    @property
    def user_rate(self) -> float | None:
        """Tokens per second that a user sees, at the median."""
        return 1 / self.tpot[0] if self.tpot and self.tpot[0] > 0 else None

    @property
    def device_rate(self) -> float:
        """Tokens of answers per second and device."""
        return self.output_rate / self.trial.fleet.devices

    def mean(self, gauge: str) -> float:
        """Of a gauge, over the time while requests arrive."""
        if len(self.gauges) < 2:
            return float(getattr(self.gauges[0], gauge)) if self.gauges else 0.0
        times = np.array([each.at for each in self.gauges])
        values = np.array([getattr(each, gauge) for each in self.gauges])
        spans = np.diff(times)
        return float(np.average(values[1:], weights=spans)) if spans.sum() > 0 else float(values.mean())

    def most(self, gauge: str) -> float:
        """The highest value seen."""
        return max((float(getattr(each, gauge)) for each in self.gauges), default=0.0)


def try_fleet(bench: SizingBench, trial: SizingTrial) -> FleetOutcome:
    """Simulate a fleet, until the goal is out of reach or to the end.

    Raises:
        SpecError: the model does not fit on an engine.
        ValueError: no objective judges any request.
    """
    requests = trial.condition.apply(bench.requests if trial.whole else bench.stretch)
    window = (bench.warm_up, requests[-1].intended - bench.cool_down) if trial.whole else (0.0, float("inf"))

    def objective(record: RequestRecord) -> Objective | None:
        if not record.awaited or not window[0] <= record.intended <= window[1]:
            return None
        return bench.objectives.get(record.klass) or bench.objectives.get("default")

    cost = trial.fleet.kind.cost(bench.model)
    cluster = _cluster(bench, trial.fleet, cost)
    judged = len(bench.requests) if trial.lenient else len(requests)
    allowed = None if trial.to_the_end else floor((1 - bench.goal) * judged + 1e-9)
    watch = SimulationWatch(cluster, cost, len(requests), allowed, objective)
    stopped = False
    try:
        cluster.run(requests, watch)
    except OutOfReach:
        stopped = True
    return _outcome(trial, cluster, watch, requests, stopped=stopped)


def _cluster(bench: SizingBench, fleet: Fleet, cost: CostModel) -> Cluster:
    tuning = fleet.tuning
    shape = replace(bench.server, max_step_tokens=tuning.max_step_tokens, max_running=tuning.max_running)
    machines = bench.machines(cost)
    if not fleet.kind.split:
        return Cluster(cost, shape, make_router(bench.router), len(fleet.roles), machines=machines)
    bandwidth = bench.bandwidth or cost.devices * cost.hardware.tier_bytes_per_second["host"]
    pool = switching_pool(
        RolePool(roles=fleet.roles, bytes_per_second=bandwidth, seconds=bench.latency), bench.objectives.get("default")
    )
    pace = pool.switching.bounds.tpot if pool.switching else None
    return Cluster(cost, shape, make_router(bench.router, decode_slo=pace), pool, machines=machines)


def _outcome(
    trial: SizingTrial, cluster: Cluster, watch: SimulationWatch, requests: Sequence[Planned], *, stopped: bool
) -> FleetOutcome:
    records = cluster.records
    judged = [(record, objective) for record in records if (objective := watch.objective(record)) is not None]
    if not judged:
        raise ValueError("no objective judges any request of this trace: give --slo")
    whole = [record for record in records if record.ok]
    unfit = sum(not record.fits for record in records)
    ended = max((record.tokens[-1][0] for record in records if record.tokens), default=requests[-1].intended)
    seconds = max(ended - requests[0].intended, 1e-9)
    output = sum(len(record.tokens) for record in whole)
    prompts = sum(record.asked_prompt for record in whole)
    cached = sum(record.cached_tokens or 0 for record in whole)
    if stopped:  # all that may still come are counted as met
        met, total = len(requests) - unfit - watch.missed, len(requests) - unfit
    else:
        met, total = sum(objective.met_by(record) for record, objective in judged), len(judged)
    return FleetOutcome(
        trial=trial,
        arrived=len(records),
        planned=len(requests),
        judged=total,
        met=met,
        late_first=sum(_over(record.ttft, objective.ttft) for record, objective in judged),
        late_pace=sum(_over(record.tpot, objective.tpot) for record, objective in judged),
        failed=sum(record.error is not None for record, _ in judged),
        unfit=unfit,
        stopped=stopped,
        seconds=seconds,
        utilisation=sum(each.busy_seconds for each in cluster.replicas) / seconds / len(cluster.replicas),
        peak_share=watch.peak_seconds(prompts - cached + output) / seconds / trial.fleet.devices,
        ttft=_quantiles([record.ttft for record in whole]),
        tpot=_quantiles([record.tpot for record in whole]),
        output_rate=output / seconds,
        token_rate=(output + prompts) / seconds,
        cached=cached / prompts if prompts else 0.0,
        preemptions=sum(each.preemptions for each in cluster.stats()),
        balance=_balance(cluster),
        gauges=watch.gauges,
    )


def _over(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound


def _quantiles(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    p50, p99 = np.percentile(known, (50, 99))
    return float(p50), float(p99)


def _balance(cluster: Cluster) -> float:
    """The most uneven role's."""
    found = 1.0
    for role in Role:
        done = [
            each.scheduler.stats.prompt_tokens + each.scheduler.stats.generation_tokens
            for each in cluster.replicas
            if each.role is role
        ]
        if done and sum(done):
            found = max(found, max(done) * len(done) / sum(done))
    return found
