"""How metrics are declared: one prefix, one registry, buckets that reach from a millisecond to minutes."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

# Else OpenMetrics would have one more series for each counter: when it was made, which nobody asks.
disable_created_metrics()  # type: ignore[no-untyped-call]
FROM_1_MS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class FrequentHistogram(Collector):
    """For what happens at every token: without labels, and observed by one thread alone. It takes a tenth of what `Histogram` does,
    which locks and walks its buckets.

    Args:
        name: of the metric.
        text: its help.
        buckets: upper bounds, each of which belongs to its bucket, in ascending order; the last bucket has none.
        registry: where it is collected.
    """

    def __init__(self, name: str, text: str, buckets: Sequence[float], registry: CollectorRegistry) -> None:
        self._name, self._text, self._bounds = name, text, tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, amount: float, times: int = 1) -> None:
        """So many more."""
        self._counts[bisect_left(self._bounds, amount)] += times
        self._sum += times * amount

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """Its name and help, without samples."""
        return [HistogramMetricFamily(self._name, self._text)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """All that was observed."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        cumulative = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        return [HistogramMetricFamily(self._name, self._text, buckets=cumulative, sum_value=self._sum)]


class Declared:
    """Declares metrics in a registry: that of others, or one of its own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"headrace_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"headrace_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...] = FROM_1_MS, *labels: str) -> Histogram:
        return Histogram(f"headrace_{name}", text, labels, registry=self.registry, buckets=buckets)

    def _frequent_histogram(self, name: str, text: str, buckets: Sequence[float] = FROM_1_MS) -> FrequentHistogram:
        return FrequentHistogram(f"headrace_{name}", text, buckets, self.registry)
