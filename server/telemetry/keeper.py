"""The process that keeps the KV tiers of several engines: whether it lives, how often it was started again, what it takes."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class KeeperCollector(Collector):
    """The series of one keeper, asked for when they are read. Without a keeper there are none.

    Args:
        registry: where they are declared.
        pid: process id of the keeper; None while there is none.
        restarts: how often it was started again.
    """

    def __init__(self, registry: CollectorRegistry, pid: Callable[[], int | None], restarts: Callable[[], int]) -> None:
        self._pid, self._restarts = pid, restarts
        registry.register(self)
        ProcessCollector("headrace_keeper", pid=lambda: pid() or "none", registry=registry)

    def collect(self) -> Iterable[Metric]:
        """The families."""
        up = "1 while the process that keeps the KV tiers of several engines lives."
        yield GaugeMetricFamily("headrace_keeper_up", up, value=self._pid() is not None)
        again = "Times the keeper was started again after a death."
        yield CounterMetricFamily("headrace_keeper_restarts", again, value=self._restarts())
