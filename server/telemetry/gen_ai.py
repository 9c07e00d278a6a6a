"""The server's histograms by OpenTelemetry's conventions for generative AI, under the names that Prometheus gives them.

They are part of `/metrics`, which collectors read as well, and are not sent a second time by OTLP. Bounds are the conventions'.
"""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Histogram

from server.telemetry.lifetime import Exchange

_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")


class GenAiMetrics:
    """The histograms of one server."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, bounds: Sequence[float], *labels: str) -> Histogram:
            every = (*_LABELS, *labels)
            return Histogram(f"gen_ai_server_{name}_seconds", text, every, registry=registry, buckets=bounds)

        self._duration = histogram(
            "request_duration",
            "From received to the end of the answer; `gen_ai.server.request.duration`.",
            _DURATION,
            "error_type",
        )
        self._first = histogram(
            "time_to_first_token", "Of requests without an error; `gen_ai.server.time_to_first_token`.", _FIRST
        )
        self._per_token = histogram(
            "time_per_output_token",
            "After the first token, of requests without an error; `gen_ai.server.time_per_output_token`.",
            _PER_TOKEN,
        )

    def request_ended(self, exchange: Exchange, now: float) -> None:
        """A request to an endpoint that generates has ended.

        Args:
            exchange: its record.
            now: in `time.monotonic()` seconds.
        """
        names = (exchange.operation, "headrace", exchange.model, exchange.model)
        exemplar = {"trace_id": exchange.trace_id} if exchange.trace_id else None
        error = exchange.error_code or ""
        self._duration.labels(*names, error).observe(now - exchange.received, exemplar)
        if error:
            return
        for lifetime in exchange.lifetimes:
            if lifetime.first_token is None or lifetime.last_token is None:
                continue
            self._first.labels(*names).observe(lifetime.first_token - lifetime.received, exemplar)
            if lifetime.completion_tokens > 1:
                per_token = (lifetime.last_token - lifetime.first_token) / (lifetime.completion_tokens - 1)
                self._per_token.labels(*names).observe(per_token, exemplar)
