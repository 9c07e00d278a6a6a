"""What each tenant uses, and how long it waits.

Label values are names of API keys, which the operator chose, and no others: what a request says as its `user` would let
any client make as many series as it likes. So where no keys are required all requests are those of one tenant, `anybody`.
"""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from server.telemetry.declared import Declared
from server.telemetry.lifetime import Lifetime

ANYBODYS = "anybody"  # the label where no keys are required
_WAITS = (0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)  # few: each bound is one more series for each tenant


class TenantMetrics(Declared):
    """The series of all tenants.

    Args:
        registry: where they are declared.
        weights: of each tenant with a key, as the policy `fair` shares work out; empty where no keys are required.
    """

    def __init__(self, registry: CollectorRegistry, weights: Mapping[str, float]) -> None:
        super().__init__(registry)
        self._weights = weights or {ANYBODYS: 1.0}
        self._open = self._gauge("tenant_sequences_open", "Sequences of a tenant that wait or run.", "tenant")
        self._ended = self._counter("tenant_sequences", "Sequences of a tenant that ended.", "tenant")
        self._prompt = self._counter("tenant_prompt_tokens", "Prompt tokens of a tenant's sequences.", "tenant")
        self._cached = self._counter(
            "tenant_cached_tokens",
            "Prompt tokens of a tenant's sequences that were found in the prefix cache.",
            "tenant",
        )
        self._generated = self._counter("tenant_generation_tokens", "Tokens generated for a tenant.", "tenant")
        self._errors = self._counter("tenant_errors", "Requests of a tenant answered with an error.", "tenant")
        self._waits = self._histogram(
            "tenant_queue_seconds", "From received to first scheduled, by tenant.", _WAITS, "tenant"
        )
        weight = self._gauge("tenant_weight", "Share of the work that `fair` scheduling gives to a tenant.", "tenant")
        for name, value in self._weights.items():
            weight.labels(name).set(value)
            for series in (self._open, self._ended, self._prompt, self._cached, self._generated, self._errors):
                series.labels(name)
            self._waits.labels(name)

    def _known(self, tenant: str) -> str:
        return tenant if tenant in self._weights else ANYBODYS

    def sequence_begun(self, tenant: str) -> None:
        """One more is open."""
        self._open.labels(self._known(tenant)).inc()

    def sequence_ended(self, tenant: str, lifetime: Lifetime) -> None:
        """One that was open has ended."""
        name = self._known(tenant)
        self._open.labels(name).dec()
        self._ended.labels(name).inc()
        self._prompt.labels(name).inc(lifetime.prompt_tokens)
        self._cached.labels(name).inc(lifetime.cached_tokens)
        self._generated.labels(name).inc(lifetime.completion_tokens)
        if lifetime.scheduled is not None:
            self._waits.labels(name).observe(max(0.0, lifetime.scheduled - lifetime.received))

    def request_failed(self, tenant: str) -> None:
        """A request of this tenant was answered with an error."""
        self._errors.labels(self._known(tenant)).inc()
