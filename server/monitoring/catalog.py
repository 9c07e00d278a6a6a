"""Which series there are, and which labels each has: what expressions are held against before they are written down."""

from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric

from server.telemetry.metrics import every_family

TARGET = frozenset({"instance", "job"})  # labels that Prometheus adds to whatever it scrapes
# Series that Prometheus makes itself.
_OWN = {"up": TARGET, "ALERTS": TARGET | {"alertname", "alertstate", "severity"}}


class UnknownSeriesError(ValueError):
    """An expression names a series or a label that does not exist."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """Labels by series.

    Attributes:
        labels: by name, as in an expression: `..._bucket`, `..._total`.
        help: what the metric of each series is, from its declaration.
    """

    labels: Mapping[str, frozenset[str]]
    help: Mapping[str, str]

    def labels_of(self, series: str) -> frozenset[str]:
        """The labels of a series.

        Raises:
            UnknownSeriesError: there is no such series.
        """
        if series not in self.labels:
            raise UnknownSeriesError(f"there is no series {series}")
        return self.labels[series]

    def with_rules(self, rules: Mapping[str, frozenset[str]]) -> "Catalog":
        """This one and the series that recording rules make."""
        return Catalog({**self.labels, **rules}, self.help)


def catalog() -> Catalog:
    """The series of a server with several engines and with tiers, which has all there are."""
    labels: dict[str, frozenset[str]] = dict(_OWN)
    explained: dict[str, str] = {}
    for family in every_family(["engine-0", "engine-1"]):
        for series, names in _series(family).items():
            labels[series] = names
            explained[series] = family.documentation
    return Catalog(labels, explained)


def _series(family: Metric) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for sample in family.samples:
        found[sample.name] = found.get(sample.name, TARGET) | frozenset(sample.labels)
    return found
