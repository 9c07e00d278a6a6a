"""A layout simulated at one rate: which requests met their objectives, and which phase was behind.

The first quarter of the requests fills the pool and is not judged: what counts is how a server does that has been busy for a while.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.planner.layout import Layout
from loadtest.report.records import Objective, RequestRecord
from loadtest.simulate.cluster import Cluster, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import Hardware, ModelSpec
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces import Trace
from scheduler.router.policies import make_router

WARM_UP = 0.25  # share of the requests that is not judged


@dataclass(frozen=True, slots=True, kw_only=True)
class Workbench:
    """What all trials of a plan have in common.

    Attributes:
        trace: whose requests are sent.
        load: which of them, and how they arrive; the rate is each trial's own.
        hardware, model: what runs, on what.
        server: settings of each engine.
        router: name of the routing policy.
        objectives: by class.
        bandwidth: bytes per second at which an engine hands KV over; None: that of its GPUs' host tiers.
        latency: seconds that a hand-over takes beside that.
        seconds: of arrivals per trial.
        least, most: requests per trial.
        paced: whether the router keeps to the objectives' time between tokens.
    """

    trace: Trace
    load: LoadShape
    hardware: Hardware
    model: ModelSpec
    server: ServerShape
    router: str
    objectives: dict[str, Objective]
    bandwidth: float | None
    latency: float
    seconds: float
    least: int
    most: int
    paced: bool = True

    def objective(self, record: RequestRecord) -> Objective | None:
        """The one that judges a request, if any; none judges what does not fit."""
        if not record.fits:
            return None
        return self.objectives.get(record.klass) or self.objectives.get("default")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """What came of a trial.

    Attributes:
        rate: requests per second that arrived.
        attainment: share of the judged requests that met their objective.
        ttft, tpot: shares that kept these bounds; 1 if there is no such bound.
        refused: share that was not served at all.
        unfit: share of all requests of the trial that are longer than the context.
        preempted: preemptions for each request of the trial.
    """

    rate: float
    attainment: float
    ttft: float
    tpot: float
    refused: float
    unfit: float
    preempted: float

    @property
    def goodput(self) -> float:
        """Requests per second that met their objective."""
        return self.rate * self.attainment

    @property
    def bottleneck(self) -> str:
        """What was missed the most."""
        first, pace = 1 - self.ttft, 1 - self.tpot
        if self.refused > max(first, pace) / 2:
            found = "full queue"
        elif first + pace == 0:
            found = "end to end"
        elif min(first, pace) > max(first, pace) / 2:
            found = "both"
        else:
            found = "prefill" if first > pace else "decode"
        return f"{found}, KV" if self.preempted > 0.05 else found


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of a layout at a rate, whatever is asked of it.

    Attributes:
        rate: requests per second that arrived.
        records: those that count, each with its first and its last token alone.
        preempted: preemptions for each request of the trial.
    """

    rate: float
    records: Sequence[RequestRecord]
    preempted: float


def try_out(bench: Workbench, layout: Layout, rate: float) -> TrialOutcome:
    """Simulate a layout at a rate, and judge it.

    Raises:
        ValueError: no objective judges any request.
    """
    return judge(bench, observe(bench, layout, rate))


def observe(bench: Workbench, layout: Layout, rate: float) -> Observation:
    """Simulate a layout at a rate."""
    cost = CostModel(bench.hardware, bench.model, layout.devices)
    bandwidth = bench.bandwidth or layout.devices * bench.hardware.tier_bytes_per_second["host"]
    tpot = [each.tpot for each in bench.objectives.values() if each.tpot is not None and bench.paced]
    router = make_router(bench.router, decode_slo=min(tpot, default=None))
    pool = RolePool(roles=layout.roles, bytes_per_second=bandwidth, seconds=bench.latency)
    cluster = Cluster(cost, bench.server, router, pool)
    many = max(bench.least, min(bench.most, round(rate * bench.seconds)))
    records = cluster.run(make_plan(bench.trace, replace(bench.load, rate=rate, limit=many)).requests)
    preempted = sum(stats.preemptions for stats in cluster.stats()) / len(records)
    return Observation(rate, [_ends_of(record) for record in records[int(WARM_UP * len(records)) :]], preempted)


def _ends_of(record: RequestRecord) -> RequestRecord:
    """A record with the same times, as far as objectives ask for them, and in a tenth of the room."""
    tokens = record.tokens
    return replace(record, tokens=[*tokens[:1], (tokens[-1][0], len(tokens) - 1)] if len(tokens) > 1 else tokens)


def judge(bench: Workbench, seen: Observation) -> TrialOutcome:
    """What came of a trial by the objectives.

    Raises:
        ValueError: none of them judges any request.
    """
    judged = [(record, objective) for record in seen.records if (objective := bench.objective(record)) is not None]
    if not judged:
        raise ValueError("no objective judges any request of this trace: give --slo")

    def share(verdicts: Sequence[bool]) -> float:
        return sum(verdicts) / len(judged)

    return TrialOutcome(
        rate=seen.rate,
        attainment=share([objective.met_by(record) for record, objective in judged]),
        ttft=share([_kept(objective.ttft, record.ttft) for record, objective in judged]),
        tpot=share([_kept(objective.tpot, record.tpot) for record, objective in judged]),
        refused=share([record.error is not None for record, _ in judged]),
        unfit=sum(not record.fits for record in seen.records) / len(seen.records),
        preempted=seen.preempted,
    )


def _kept(bound: float | None, value: float | None) -> bool:
    return bound is None or value is None or value <= bound
