"""The process that keeps the KV tiers of several engines, as metrics. A server without one has none of these series."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class KeeperCollector(Collector):
    """The series of one keeper, read when they are asked for.

    Args:
        up: whether it works.
        restarts: how often it was started again, by why.
        pid: of its process; None while there is none.
        registry: where they appear.
    """

    def __init__(
        self,
        up: Callable[[], bool],
        restarts: Callable[[], Mapping[str, int]],
        pid: Callable[[], int | None],
        registry: CollectorRegistry,
    ) -> None:
        self._up = up
        self._restarts = restarts
        registry.register(self)
        ProcessCollector("headrace_keeper", pid=lambda: pid() or "none", registry=registry)

    def collect(self) -> Iterable[Metric]:
        """The families."""
        up = GaugeMetricFamily(
            "headrace_keeper_up", "1 while the keeper of the KV tiers works; engines serve without it."
        )
        up.add_metric([], float(self._up()))
        text = "Times the keeper was started again, by why: it `died`, or it `hung` and was killed."
        restarts = CounterMetricFamily("headrace_keeper_restarts", text, labels=["reason"])
        for reason, count in self._restarts().items():
            restarts.add_metric([reason], count)
        return up, restarts
