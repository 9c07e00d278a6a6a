"""What the canary found: how often its prompt gave the tokens that it gave at the start, by the way the KV came."""

from enum import StrEnum

from prometheus_client import CollectorRegistry

from server.telemetry.declared import Declared


class CanaryPath(StrEnum):
    """Where the KV of the canary's prompt comes from."""

    COLD = "cold"  # all of it is computed
    WARM = "warm"  # found on the device, where an earlier check left it
    SWAPPED = "swapped"  # loaded from a tier below
    HANDED_OVER = "handed_over"  # computed by one engine, decoded by another


class CanaryOutcome(StrEnum):
    """What came of one check."""

    EQUAL = "equal"  # the tokens of the start
    DIFFERS = "differs"  # others, twice in a row
    SKIPPED = "skipped"  # the engine was busy or away, or the KV did not come that way
    FAILED = "failed"  # the engine ended it with an error


class CanaryMetrics(Declared):
    """The series of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self._checks = self._counter(
            "canary_checks",
            "Checks of the canary (--canary) by where the KV of its prompt came from. `equal`: its tokens are those of the start; "
            "`differs`: they are not, twice in a row, so something computes or keeps what it should not; `skipped`: the engine was "
            "busy or away, or the KV did not come that way; `failed`: the engine ended it with an error.",
            "path",
            "outcome",
        )
        for path in CanaryPath:
            for outcome in CanaryOutcome:
                self._checks.labels(path.value, outcome.value)

    def checked(self, path: CanaryPath, outcome: CanaryOutcome) -> None:
        """One more check has ended."""
        self._checks.labels(path.value, outcome.value).inc()
