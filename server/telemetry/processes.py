"""The processes beside server and engines, as metrics: the keeper of KV tiers, and HTTP processes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class KeeperFigures(Protocol):
    """One keeper.

    Attributes:
        up: whether it works.
        restarts: how often it was started again, by why.
        pid: of its process; None while there is none, or it is on another machine.
    """

    @property
    def up(self) -> bool:
        """As above."""

    @property
    def restarts(self) -> Mapping[str, int]:
        """As above."""

    @property
    def pid(self) -> int | None:
        """As above."""


class KeeperCollector(Collector):
    """The series of all keepers, read when they are asked for. Those of other machines have one more label, `node`.

    Args:
        figures: of each, by the address of its node; that of this machine has none.
        registry: where they appear.
    """

    def __init__(self, figures: Callable[[], Mapping[str, KeeperFigures]], registry: CollectorRegistry) -> None:
        self._figures = figures
        registry.register(self)
        ProcessCollector("headrace_keeper", pid=self._pid, registry=registry)

    def _pid(self) -> int | str:
        here = self._figures().get("")
        return (None if here is None else here.pid) or "none"

    def collect(self) -> Iterable[Metric]:
        """The families."""
        figures = self._figures()
        node = ["node"] if any(figures) else []
        up = GaugeMetricFamily(
            "headrace_keeper_up", "1 while the keeper of the KV tiers works; engines serve without it.", labels=node
        )
        text = "Times the keeper was started again, by why: it `died`, or it `hung` and was killed."
        restarts = CounterMetricFamily("headrace_keeper_restarts", text, labels=[*node, "reason"])
        for name, each in figures.items():
            where = [name] if node else []
            up.add_metric(where, float(each.up))
            for reason, count in each.restarts.items():
                restarts.add_metric([*where, reason], count)
        return up, restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProcessFigures:
    """One HTTP process.

    Attributes:
        up: whether it takes connections.
        restarts: how often it was started again.
        connections: open.
        cpu_seconds: of its present incarnation.
    """

    name: str
    up: bool
    restarts: int
    connections: int
    cpu_seconds: float


class HttpProcessCollector(Collector):
    """Their series, read when they are asked for.

    Args:
        figures: of each.
    """

    def __init__(self, figures: Callable[[], Sequence[HttpProcessFigures]]) -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        """The families."""
        up = GaugeMetricFamily(
            "headrace_http_process_up", "1 while the HTTP process takes connections.", labels=["process"]
        )
        restarts = CounterMetricFamily(
            "headrace_http_process_restarts", "Times the HTTP process was started again.", labels=["process"]
        )
        connections = GaugeMetricFamily(
            "headrace_http_connections_open", "Connections that the HTTP process has.", labels=["process"]
        )
        cpu = CounterMetricFamily(
            "headrace_http_process_cpu_seconds",
            "Processor time of the HTTP process; near 1 a second it has no more to give.",
            labels=["process"],
        )
        for each in self._figures():
            up.add_metric([each.name], float(each.up))
            restarts.add_metric([each.name], each.restarts)
            connections.add_metric([each.name], each.connections)
            cpu.add_metric([each.name], each.cpu_seconds)
        return up, restarts, connections, cpu
