"""The HTTP processes of a server that has several, as metrics. A server of one process has none of these series."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


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
