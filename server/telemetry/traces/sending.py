"""Traces by OpenTelemetry: one span tree for each request that generates, sent by OTLP over HTTP in a thread of the SDK's own.

The SDK is the official one, an extra (`pip install headrace[tracing]`): samplers, batches, retries and the environment variables of
the standard are what others rely on. It is imported only where traces are on.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.settings import Settings
from server.telemetry.lifetime import Exchange
from server.telemetry.metrics import server_version
from server.telemetry.traces.spans import Attribute, SpanPlan, parts_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

_PATH = "/v1/traces"
_CLOSE_SECONDS = 2.0
_PROVIDER = "headrace"
_log = logging.getLogger("headrace.server")


def tracing_of(settings: Settings) -> "Tracing | None":
    """What makes traces, if they are on."""
    return Tracing(settings) if settings.traced_by() else None


class Tracing:
    """Makes the traces of one server. `close` sends what is left."""

    def __init__(self, settings: Settings) -> None:
        self._provider = _provider(settings)
        self._tracer: Tracer = self._provider.get_tracer("headrace", server_version())

    def begin(self, headers: Mapping[str, str], exchange: Exchange) -> "RequestTrace":
        """A request has come; it belongs to the client's trace if its `traceparent` names one.

        Args:
            headers: of the request, by their lower-case names.
            exchange: its record.
        """
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(dict(headers))
        offset = time.time_ns() - time.monotonic_ns()
        start = offset + round(exchange.received * 1e9)
        attributes = {"gen_ai.operation.name": exchange.operation, "gen_ai.provider.name": _PROVIDER}
        span = self._tracer.start_span(exchange.operation, parent, SpanKind.SERVER, attributes, start_time=start)
        return RequestTrace(self._tracer, span, offset)

    def close(self, seconds: float = _CLOSE_SECONDS) -> None:
        """Send what is left, and end the SDK's thread. If that takes longer it is left behind: its limits are for each batch."""
        end = threading.Thread(target=self._provider.shutdown, name="last-traces", daemon=True)
        end.start()
        end.join(seconds)
        if end.is_alive():
            _log.warning("the last traces are lost: where they are sent they were not taken in %g s", seconds)


class RequestTrace:
    """The trace of one request; made by `Tracing.begin`."""

    def __init__(self, tracer: "Tracer", span: "Span", offset: int) -> None:
        self._tracer = tracer
        self._span = span
        self._offset = offset  # nanoseconds from the monotonic clock to the time of day

    @property
    def id(self) -> str:
        """The trace's id in hexadecimal digits; empty if it is not sampled."""
        return f"{self._span.get_span_context().trace_id:032x}" if self._span.is_recording() else ""

    @property
    def response_header(self) -> str:
        """The request's span as `traceresponse` names it (W3C Trace Context, level 2): how the client finds it."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self, exchange: Exchange, scope: Mapping[str, Any], status: int | None, now: float) -> None:
        """The request has ended: send its spans.

        Args:
            exchange: its record.
            scope: of the request.
            status: of the answer; None if there was none.
            now: in `time.monotonic()` seconds.
        """
        span = self._span
        if not span.is_recording():
            return
        if exchange.model:
            span.update_name(f"{exchange.operation} {exchange.model}")
        span.set_attributes(request_attributes(exchange, scope, status))
        if exchange.error_code is not None:
            from opentelemetry.trace import Status, StatusCode

            span.set_status(Status(StatusCode.ERROR, exchange.error_code))
        for part in parts_of(exchange, now):
            self._emit(part, span)
        span.end(self._time(now))

    def _emit(self, plan: SpanPlan, parent: "Span") -> None:
        from opentelemetry.trace import set_span_in_context

        context = set_span_in_context(parent)
        span = self._tracer.start_span(
            plan.name, context, attributes=plan.attributes, start_time=self._time(plan.start)
        )
        for child in plan.children:
            self._emit(child, span)
        span.end(self._time(plan.end))

    def _time(self, stamp: float) -> int:
        return self._offset + round(stamp * 1e9)


def request_attributes(exchange: Exchange, scope: Mapping[str, Any], status: int | None) -> dict[str, Attribute]:
    """What the request's span says, in the words of the conventions for generative AI (OpenTelemetry semantic conventions)."""
    found: dict[str, Attribute] = {
        "http.request.method": str(scope["method"]),
        "url.path": str(scope["path"]),
        "headrace.request_id": exchange.request_id,
    }
    if status is not None:
        found["http.response.status_code"] = status
    if exchange.error_code is not None:
        found["error.type"] = exchange.error_code
    if exchange.attributes is not None:
        found |= exchange.attributes()
    lifetimes = exchange.lifetimes
    if lifetimes:
        found |= {
            "gen_ai.response.id": exchange.job,
            "gen_ai.response.model": exchange.model,
            "gen_ai.response.finish_reasons": [str(each.reason or "unknown") for each in lifetimes],
            "gen_ai.usage.input_tokens": sum(each.prompt_tokens for each in lifetimes),
            "gen_ai.usage.output_tokens": sum(each.completion_tokens for each in lifetimes),
            "gen_ai.usage.cache_read.input_tokens": sum(each.cached_tokens for each in lifetimes),
            "gen_ai.usage.reasoning.output_tokens": sum(each.reasoning_tokens for each in lifetimes),
        }
    return found


def _provider(settings: Settings) -> "TracerProvider":
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    # its warnings quote headers, whole, of anybody who sends wrong ones
    logging.getLogger("opentelemetry.trace").setLevel(logging.ERROR)
    about = {"service.version": server_version()}
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        about["service.name"] = _PROVIDER
    by_variable = "trace_ratio" not in settings.model_fields_set and bool(os.environ.get("OTEL_TRACES_SAMPLER"))
    sampler = None if by_variable else ParentBasedTraceIdRatio(settings.trace_ratio)
    provider = TracerProvider(sampler=sampler, resource=Resource.create(about), shutdown_on_exit=False)
    endpoint = settings.otlp_endpoint
    if endpoint is not None and not endpoint.endswith(_PATH):
        endpoint = endpoint.rstrip("/") + _PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider
