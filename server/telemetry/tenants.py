"""What each tenant and each key of `--api-keys` uses, and how long a tenant waits.

Label values are names of API keys, which the operator chose, and no others: what a request says as its `user` would let
any client make as many series as it likes. So where no keys are required all requests are those of one tenant, `anybody`.
"""

import contextlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge

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
        self._weights = dict(weights) or {ANYBODYS: 1.0}
        self._named: set[str] = set()  # that have series: those of now, and of before
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
        self._weight = self._gauge(
            "tenant_weight", "Share of the work that `fair` scheduling gives to a tenant.", "tenant"
        )
        self.follow(self._weights)

    def follow(self, weights: Mapping[str, float]) -> None:
        """These are the tenants from now on, and their weights. What others have used stays in its series."""
        for name in self._weights.keys() - weights.keys():
            with contextlib.suppress(KeyError):
                self._weight.remove(name)
        self._weights = dict(weights)
        self._named |= weights.keys()
        for name, value in weights.items():
            self._weight.labels(name).set(value)
            for series in (self._open, self._ended, self._prompt, self._cached, self._generated, self._errors):
                series.labels(name)
            self._waits.labels(name)

    def _known(self, tenant: str) -> str:
        return tenant if tenant in self._named else ANYBODYS

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
        if lifetime.timed and lifetime.scheduled is not None:
            self._waits.labels(name).observe(max(0.0, lifetime.scheduled - lifetime.received))

    def request_failed(self, tenant: str) -> None:
        """A request of this tenant was answered with an error."""
        self._errors.labels(self._known(tenant)).inc()


class _Used(Protocol):
    """What a request used."""

    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class KeySeries(NamedTuple):
    """Those of one key, at hand: to look them up by label takes longer than to count."""

    open: Gauge
    requests: Counter
    errors: Counter
    prompt: Counter
    cached: Counter
    generated: Counter

    def request_begun(self) -> None:
        """A request came in."""
        self.open.inc()

    def request_ended(self, use: _Used) -> None:
        """It is over."""
        self.open.dec()
        for counter, count in (
            (self.requests, use.requests),
            (self.errors, use.errors),
            (self.prompt, use.prompt_tokens),
            (self.cached, use.cached_tokens),
            (self.generated, use.completion_tokens),
        ):
            if count:
                counter.inc(count)


class KeyMetrics(Declared):
    """The series of API keys, by the names that the operator gave them, and of the file that has them.

    There is none of a key where it is not counted what they use.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(registry)
        self._known: dict[str, KeySeries] = {}
        self._open = self._gauge("key_requests_open", "Requests of an API key that count and have not ended.", "key")
        self._requests = self._counter("key_requests", "Requests of an API key that count and have ended.", "key")
        self._errors = self._counter("key_errors", "Those answered with an error.", "key")
        self._limited = self._counter(
            "key_limited", "Requests of an API key that were over a limit, by limit.", "key", "limit"
        )
        self._prompt = self._counter(
            "key_prompt_tokens", "Prompt tokens of an API key; a prompt counts once for all choices.", "key"
        )
        self._cached = self._counter("key_cached_tokens", "Those that were found in the prefix cache.", "key")
        self._generated = self._counter("key_generation_tokens", "Tokens generated for an API key.", "key")
        self._keys = self._gauge("api_keys", "Keys of the file of API keys that is in use.")
        self._up = self._gauge(
            "api_keys_file_up", "0 while the file of API keys cannot be used, and what it said before holds; else 1."
        )
        self._up.set(1)
        self._reads = self._counter(
            "api_keys_reads", "Times that the file of API keys was read after a change, by outcome.", "outcome"
        )
        self._lost = self._counter(
            "usage_write_failures", "Times that the use of keys could not be written; it is tried again."
        )

    def known(self, key: str) -> "KeySeries":
        """The series of a key, which are there before it is used."""
        series = self._known.get(key)
        if series is None:
            counters = (self._requests, self._errors, self._prompt, self._cached, self._generated)
            series = KeySeries(self._open.labels(key), *(counter.labels(key) for counter in counters))
            self._known[key] = series
        return series

    def request_limited(self, key: str, limit: str) -> None:
        """A request was over this limit."""
        self._limited.labels(key, limit).inc()

    def file_taken(self, keys: int) -> None:
        """The file is in use, with so many keys."""
        self._keys.set(keys)
        self._up.set(1)

    def file_reread(self) -> None:
        """The file was read again, and can be used."""
        self._reads.labels("taken").inc()

    def file_refused(self) -> None:
        """The file has changed and cannot be used."""
        self._up.set(0)
        self._reads.labels("refused").inc()

    def usage_not_written(self) -> None:
        """The use of keys could not be written."""
        self._lost.inc()
