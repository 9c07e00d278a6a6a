"""How metrics are declared: one prefix, one registry, buckets that reach from a millisecond to minutes."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

# Else OpenMetrics would have one more series for each counter: when it was made, which nobody asks.
disable_created_metrics()  # type: ignore[no-untyped-call]
FROM_1_MS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


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
