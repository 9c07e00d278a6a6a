"""The small endpoints for operators: `/live`, `/ready`, `/health`, `/metrics`, `/version` and `/`."""

from collections.abc import Mapping
from math import isfinite

from starlette.responses import Response

from server.api.endpoint import Call, GetEndpoint
from server.engines.health import EngineHealth
from server.errors import Unavailable
from server.schema.answers import EngineHealthAnswer, HealthAnswer, IndexAnswer, StatusAnswer, VersionAnswer
from server.telemetry.metrics import server_version


async def _live(call: Call) -> StatusAnswer:
    return StatusAnswer(status="live")


async def _ready(call: Call) -> StatusAnswer:
    if call.context.drain.draining:
        raise Unavailable("The server is shutting down.", headers={"Retry-After": "5"})
    if not call.context.engines.ready:
        raise call.context.engines.unavailable()
    return StatusAnswer(status="ready")


async def _health(call: Call) -> HealthAnswer | Response:
    engines = await call.context.health.look()
    useful = [engine for engine in engines.values() if engine.trouble is None]
    if not useful:
        headers = None if call.context.engines.ready else call.context.engines.unavailable().headers
        raise Unavailable(_troubles(engines), headers=headers)
    age = min(engine.last_token_seconds_ago for engine in useful)
    if len(engines) == 1:
        only = HealthAnswer(status="healthy", last_token_seconds_ago=age)
        return Response(only.model_dump_json(exclude={"engines"}), media_type="application/json")
    reports = {
        name: EngineHealthAnswer(
            status="unhealthy" if engine.trouble else "healthy",
            trouble=engine.trouble,
            last_token_seconds_ago=engine.last_token_seconds_ago if isfinite(engine.last_token_seconds_ago) else None,
        )
        for name, engine in engines.items()
    }
    return HealthAnswer(status="healthy", last_token_seconds_ago=age, engines=reports)


def _troubles(engines: Mapping[str, EngineHealth]) -> str:
    """By name, where there are several."""
    if len(engines) == 1:
        return "".join(str(engine.trouble) for engine in engines.values())
    return " ".join(f"{name}: {engine.trouble}" for name, engine in engines.items())


async def _metrics(call: Call) -> Response:
    body, content_type = call.context.metrics.render(call.request.headers.get("accept", ""))
    return Response(body, headers={"content-type": content_type})


async def _version(call: Call) -> VersionAnswer:
    return VersionAnswer(version=server_version())


async def _index(call: Call) -> IndexAnswer:
    return IndexAnswer(name="headrace", version=server_version(), openapi="/openapi.json", models="/v1/models")


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
        summary="Whether new requests are taken: 200, else 503 with the start-up phase or the reason",
        answer=_ready,
        answers=StatusAnswer,
        errors=(503,),
        needs_key=False,
        while_draining=True,
        probe=True,
    ),
    GetEndpoint(
        path="/health",
        tag="operations",
        summary="Whether a token was produced lately or can be produced now: 200, else 503 with the reason",
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
        errors=(401,),
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
    GetEndpoint(
        path="/",
        tag="operations",
        summary="Where to look next",
        answer=_index,
        answers=IndexAnswer,
        errors=(401,),
        while_draining=True,
    ),
)
