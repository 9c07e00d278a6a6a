"""The access log: one line about one request, at its end."""

import time
from collections.abc import Mapping
from typing import Any

from engine.ipc.log_lines import LogFields
from server.telemetry.lifetime import Exchange, Lifetime

_MAX_PARAM = 100  # characters


def access_fields(scope: Mapping[str, Any], exchange: Exchange, status: int | None) -> LogFields:
    """What a line says; of prompts and answers only their sizes, unless `exchange.content` was set, and what of
    prompts others share only if `exchange.blocks` was.

    `id`: the `x-request-id`; `trace`: the id of its trace; `answer`: the id of the answer, by which `GET /v1/requests/{id}` finds
    it. `stream`: the resumable stream that it began or went on with; one whose client has left goes on, and `reason` is `-`.
    `status=-`: the client left before the answer began. `key`: the name of the key that was sent, `tenant`: whose it is, if it has
    another name. Times are in
    milliseconds and those of the request's first sequence; tokens are summed over its sequences; bytes are those of the bodies.

    Args:
        scope: of the request.
        exchange: its record.
        status: of the answer, None if there was none.
    """
    tenant = scope.get("state", {}).get("tenant")
    key = getattr(tenant, "key", None)
    fields = LogFields(
        id=exchange.request_id,
        client=(scope.get("client") or ("-",))[0],
        method=scope["method"],
        path=scope["path"],
        status=status or "-",
    )
    if tenant is not None and key is not None:
        fields["key"] = key
        if tenant.name != key:
            fields["tenant"] = tenant.name
    fields["ms"] = round(1000 * (time.monotonic() - exchange.received), 1)
    declared = dict(scope["headers"]).get(b"content-length", b"")
    if declared.isdigit():
        fields["request_bytes"] = int(declared[:18])
    fields["answer_bytes"] = exchange.sent
    if exchange.lifetimes:
        fields |= _of_sequences(exchange, exchange.lifetimes)
    if exchange.trace_id:
        fields["trace"] = exchange.trace_id
    if exchange.stream is not None:
        fields["stream"] = exchange.stream
    if exchange.blocks is not None:
        fields |= exchange.blocks()
    if exchange.content is not None:
        fields |= exchange.content()
    if exchange.error_code is not None:
        fields["error"] = exchange.error_code
    if exchange.error_param is not None:  # a name that the client may have made up
        fields["param"] = exchange.error_param[:_MAX_PARAM]
    return fields


def _of_sequences(exchange: Exchange, lifetimes: list[Lifetime]) -> dict[str, object]:
    timings = lifetimes[0].timings()
    return {
        "answer": exchange.job,
        "model": exchange.model,
        **lifetimes[0].waits(),
        **{name: timings[name] for name in ("queue_ms", "prefill_ms", "decode_ms")},
        "sequences": len(lifetimes),
        "prompt_tokens": sum(lifetime.prompt_tokens for lifetime in lifetimes),
        "cached_tokens": sum(lifetime.cached_tokens for lifetime in lifetimes),
        "completion_tokens": sum(lifetime.completion_tokens for lifetime in lifetimes),
        "preemptions": sum(lifetime.preemptions for lifetime in lifetimes),
        "replays": sum(lifetime.replays for lifetime in lifetimes),
        "reason": ",".join(dict.fromkeys(str(lifetime.reason or "-") for lifetime in lifetimes)),
    }
