"""The small endpoints an operator looks at: `/live`, `/ready`, `/health`, `/metrics`, `/version` and `/`."""

import time

from starlette.responses import Response

from server.api.endpoint import Call, GetEndpoint
from server.errors import Unavailable
from server.schema.answers import HealthAnswer, IndexAnswer, StatusAnswer, VersionAnswer
from server.telemetry.metrics import server_version


async def _live(call: Call) -> StatusAnswer:
    return StatusAnswer(status="live")


async def _ready(call: Call) -> StatusAnswer:
    if call.context.drain.draining:
        raise Unavailable("The server is shutting down.", headers={"Retry-After": "5"})
    if call.context.engine.state != "ready":
        raise call.context.engine.unavailable()
    return StatusAnswer(status="ready")


async def _health(call: Call) -> HealthAnswer:
    engine = call.context.engine
    trouble = await call.context.health.trouble()
    if trouble is not None:
        raise Unavailable(trouble, headers=engine.unavailable().headers if engine.state != "ready" else None)
    return HealthAnswer(status="healthy", last_token_seconds_ago=round(time.monotonic() - engine.last_token, 3))


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
        summary="The process answers; nothing more",
        answer=_live,
        answers=StatusAnswer,
        needs_key=False,
        while_draining=True,
        probe=True,
    ),
    GetEndpoint(
        path="/ready",
        tag="operations",
        summary="New requests are taken: 200, else 503 with the start-up phase or the reason",
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
        summary="A token was produced lately, or one is produced now: 200, else 503 with the reason",
        answer=_health,
        answers=HealthAnswer,
        errors=(401, 503),
        while_draining=True,
        probe=True,
    ),
    GetEndpoint(
        path="/metrics",
        tag="operations",
        summary="Prometheus text format, or OpenMetrics where it is accepted; see docs/metrics.md",
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
        summary="Where to look further",
        answer=_index,
        answers=IndexAnswer,
        errors=(401,),
        while_draining=True,
    ),
)
