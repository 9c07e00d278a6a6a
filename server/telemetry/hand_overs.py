"""Hand-overs of requests from the engine that computed their prompt to the one that decodes them."""

from prometheus_client import CollectorRegistry

from server.telemetry.declared import Declared

OUTCOMES = ("loaded", "computed", "stays", "waits")


class HandOverMetrics(Declared):
    """The series of one server."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        super().__init__(registry)
        self._outcomes = self._counter(
            "hand_overs",
            "Sequences whose prompt was computed by a prefill engine, by what came of it. `loaded`: another engine went on and "
            "found all but a block of their KV; `computed`: it computed more than that; `stays`: none was there for decodes, and "
            "it went on itself; `waits`: no engine could go on at that time.",
            "outcome",
        )
        self._seconds = self._histogram(
            "hand_over_seconds", "From the first token to the next, where another engine went on."
        )
        self._tokens = self._counter(
            "hand_over_tokens",
            "Tokens before the one with which another engine went on, by how it came by their KV: `loaded` or `computed`.",
            "how",
        )
        for outcome in OUTCOMES:
            self._outcomes.labels(outcome)
        for how in ("loaded", "computed"):
            self._tokens.labels(how)

    def counted(self, outcome: str) -> None:
        """A hand-over came to this, one of `OUTCOMES`."""
        self._outcomes.labels(outcome).inc()

    def arrived(self, outcome: str, seconds: float, loaded: int, computed: int) -> None:
        """Another engine has brought the next token, after it has loaded and computed the KV of so many."""
        self.counted(outcome)
        self._seconds.observe(seconds)
        self._tokens.labels("loaded").inc(loaded)
        self._tokens.labels("computed").inc(computed)
