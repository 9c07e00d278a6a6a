"""The small endpoints for operators: `/live`, `/ready`, `/health`, `/metrics` and `/version`."""

from collections.abc import Mapping
from math import isfinite

from starlette.responses import Response

from server.api.endpoint import Call, GetEndpoint
from server.api.engines import keepers_of, state_of
from server.api.tenants import ensure_administers
from server.errors import Unavailable
from server.schema.answers import (
    EngineHealthAnswer,
    HealthAnswer,
    ReadyAnswer,
    StatusAnswer,
    VersionAnswer,
)
from server.telemetry.metrics import server_version


async def _live(call: Call) -> StatusAnswer:
    return StatusAnswer(status="live")


async def _ready(call: Call) -> ReadyAnswer | Response:
    engines = call.context.engines
    if call.context.drain.draining:
        raise Unavailable("The server is shutting down.", headers={"Retry-After": "5"})
    if not engines.ready:
        troubles = {client.name: client.status.unavailable().message for client in engines}
        raise Unavailable(_by_name(troubles), headers=engines.unavailable().headers)
    answer = ReadyAnswer(status="ready", engines={client.name: state_of(client) for client in engines})
    return answer if len(engines) > 1 else _without_engines(answer)


async def _health(call: Call) -> HealthAnswer | Response:
    engines = {client.name: client.status.health() for client in call.context.engines}
    useful = [engine for engine in engines.values() if engine.trouble is None]
    if not useful:
        troubles = {name: str(engine.trouble) for name, engine in engines.items()}
        raise Unavailable(_by_name(troubles), headers=call.context.engines.unavailable().headers)
    newest = min(useful, key=lambda engine: engine.last_token_seconds_ago)
    answer = HealthAnswer(
        status="healthy",
        doing=newest.doing,
        steps=newest.steps,
        last_token_seconds_ago=newest.last_token_seconds_ago,
    )
    answer.keeper, answer.keepers = keepers_of(call.context)
    if len(engines) == 1 and not answer.keepers:
        return _without_engines(answer)
    answer.engines = {
        name: EngineHealthAnswer(
            status="unhealthy" if engine.trouble else "healthy",
            trouble=engine.trouble,
            doing=engine.doing,
            steps=engine.steps,
            last_token_seconds_ago=engine.last_token_seconds_ago if isfinite(engine.last_token_seconds_ago) else None,
        )
        for name, engine in engines.items()
    }
    return answer


def _by_name(troubles: Mapping[str, str]) -> str:
    """Of all engines; with their names where there are several."""
    if len(troubles) == 1:
        return "".join(troubles.values())
    return " ".join(f"{name}: {trouble}" for name, trouble in troubles.items())


def _without_engines(answer: ReadyAnswer | HealthAnswer) -> Response:
    """Of a server that has only one."""
    return Response(answer.model_dump_json(exclude={"engines", "keeper", "keepers"}), media_type="application/json")


async def _metrics(call: Call) -> Response:
    if call.tenant.of_file:
        ensure_administers(call.tenant, call.context.settings, "read metrics, which tell what each key uses")
    body, content_type = call.context.metrics.render(", ".join(call.request.headers.getlist("accept")))
    return Response(body, headers={"content-type": content_type})


async def _version(call: Call) -> VersionAnswer:
    return VersionAnswer(version=server_version())


# All are answered while the server drains: that is when somebody looks.
ENDPOINTS = (
    GetEndpoint(
        path="/live",
        tag="operations",
        summary="Whether the process answers; says nothing about the engine",
        answer=_live,
        answers=StatusAnswer,
        needs_key=False,
        while_draining=True,
        probe=True,
    ),
    GetEndpoint(
        path="/ready",
        tag="operations",
        summary="Whether new requests are taken: 200, else 503 with the start-up phase or the reason (draining, a hang)",
        answer=_ready,
        answers=ReadyAnswer,
        errors=(503,),
        needs_key=False,
        while_draining=True,
        probe=True,
    ),
    GetEndpoint(
        path="/health",
        tag="operations",
        summary="Whether the engine lives, i.e. answers and ends its steps: 200, else 503 with the reason",
        answer=_health,
        answers=HealthAnswer,
        errors=(401, 503),
        while_draining=True,
        probe=True,
    ),
    GetEndpoint(
        path="/metrics",
        tag="operations",
        summary="Prometheus text format, or OpenMetrics if the client accepts it; see docs/metrics.md",
        answer=_metrics,
        content={"text/plain": {"schema": {"type": "string"}}},
        errors=(401, 403),
        while_draining=True,
    ),
    GetEndpoint(
        path="/version",
        tag="operations",
        summary="The server's version",
        answer=_version,
        answers=VersionAnswer,
        errors=(401,),
        while_draining=True,
    ),
)
