"""What is seen of a simulation while it runs: gauges of its engines, and whether the goal can still be reached."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtest.report.records import Objective, RequestRecord
from loadtest.simulate.cluster import Cluster
from loadtest.simulate.cost import CostModel
from loadtest.simulate.replica import Replica

_SAMPLES = 400  # of a simulation
_LOOKS = 200


class OutOfReach(Exception):
    """So many requests have missed their objective that the goal cannot be reached any more."""


@dataclass(slots=True)
class Gauge:
    """Of all engines together, at one moment.

    Attributes:
        at: seconds.
        busy: seconds for which an engine has computed.
        running: sequences of an engine.
        waiting: requests of an engine.
        kv: share of its blocks that requests hold.
    """

    at: float
    busy: float
    running: float
    waiting: float
    kv: float

    @classmethod
    def of(cls, at: float, replicas: Sequence[Replica]) -> "Gauge":
        """Look at all engines."""
        stats = [replica.scheduler.snapshot() for replica in replicas]
        many = len(replicas)
        used = sum(each.blocks_used for each in stats)
        return cls(
            at,
            sum(replica.busy_seconds for replica in replicas) / many,
            sum(each.running for each in stats) / many,
            sum(each.waiting for each in stats) / many,
            used / sum(replica.scheduler.pool.blocks for replica in replicas),
        )


@dataclass(slots=True)
class SimulationWatch:
    """Called after every arrival.

    Args:
        cluster: that is watched.
        cost: of its engines.
        total: requests that will arrive.
        allowed: of them that may miss their objective; None: it runs to its end.
        objective: that judges a request, if any.

    Attributes:
        gauges: as they were, evenly over the arrivals.
        missed: requests that are known to have missed.
    """

    cluster: Cluster
    cost: CostModel
    total: int
    allowed: int | None
    objective: Callable[[RequestRecord], Objective | None]
    gauges: list[Gauge] = field(default_factory=list)
    missed: int = 0
    _open: list[RequestRecord] = field(default_factory=list)
    _seen: int = 0

    def __call__(self, arrived: int) -> None:
        """So many have arrived. Raises OutOfReach."""
        if arrived % max(1, self.total // _SAMPLES) == 0:
            self.gauges.append(Gauge.of(self.cluster.records[-1].intended, self.cluster.replicas))
        if self.allowed is not None and arrived % max(1, self.total // _LOOKS) == 0:
            self._look(self.allowed)

    def peak_seconds(self, tokens: int) -> float:
        """Of one device at its peak, for the layers' products of so many tokens."""
        model, rates = self.cost.model, self.cost.hardware.operations_per_second
        return 2 * model.active_weights * tokens / rates[model.compute]

    def _look(self, allowed: int) -> None:
        records = self.cluster.records
        candidates = [*self._open, *records[self._seen :]]
        self._seen = len(records)
        self._open = []
        for record in candidates:
            late = self._late(record)
            if late:
                self.missed += 1
            elif late is None:
                self._open.append(record)
        if self.missed > allowed:
            raise OutOfReach

    def _late(self, record: RequestRecord) -> bool | None:
        """Whether a request has missed its objective; None while that is open."""
        objective = self.objective(record)
        if objective is None:
            return False
        if record.error is not None:
            return True
        first = record.ttft
        if first is not None and objective.ttft is not None and first > objective.ttft:
            return True
        return None if record.finished is None else not objective.met_by(record)
