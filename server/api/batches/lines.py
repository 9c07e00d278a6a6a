"""How a line of a batch is answered: by the endpoint for which it is, as if a client had sent it, at idle priority."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from scheduler.types.messages import IDLE_PRIORITY
from server.api.context import ServerContext
from server.api.endpoint import Call, Endpoint, PostEndpoint
from server.api.requests.parse import parse
from server.api.tenants import KeyRing, Tenant
from server.batches.results import Fault, LineAnswer
from server.errors import ApiError, InternalError, PoisonRequest, QueueFull, Unavailable
from server.stream.job import Job, TranslatedJob
from server.telemetry.lifetime import IdleExchange
from server.to_thread import by_size

# Those whose requests a batch may have, as far as they are served.
BATCHED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_log = logging.getLogger("headrace.batches")


def batched(endpoints: Sequence[Endpoint]) -> dict[str, PostEndpoint[Any, Any]]:
    """The endpoints whose requests a batch may have, by their paths."""
    return {each.path: each for each in endpoints if isinstance(each, PostEndpoint) and each.path in BATCHED}


class LineAnswers:
    """Answers lines.

    Args:
        endpoints: all of the server.
        context: the server's.
    """

    def __init__(self, endpoints: Sequence[Endpoint], context: ServerContext) -> None:
        self._endpoints = batched(endpoints)
        self._context = context
        self._keys = context.keys or KeyRing(context.settings)

    async def answer(self, path: str, body: bytes, owner: str) -> LineAnswer:
        """The answer to a request of this owner to the endpoint of this path. Raises nothing but what is no fault of a request."""
        request_id = f"req-{secrets.token_hex(12)}"
        tenant, endpoint = self._keys.of_name(owner), self._endpoints.get(path)
        if tenant is None or endpoint is None:  # perhaps it comes back
            return _refused(Unavailable("The key of this batch, or its endpoint, is not served now."), request_id)
        exchange = IdleExchange(request_id=request_id, received=time.monotonic(), operation=endpoint.operation)
        request = _request(path, {"exchange": exchange, "tenant": tenant})
        accounts, meter = self._context.accounts, None
        if accounts is not None and tenant.key is not None:
            exchange.meter = meter = accounts.beside(tenant.key).begin(exchange)
        try:
            headers, job = await by_size(len(body), lambda: _valid(endpoint, body, self._context, tenant))
            exchange.validated = time.monotonic()
            make_idle(job)
            response = await endpoint.answer(job, Call(request, self._context, headers))
        except ApiError as error:
            return _refused(error, request_id)
        except Exception:
            _log.exception("a line of a batch failed")
            return _refused(InternalError("The server failed; see its log."), request_id)
        finally:
            if meter is not None:
                meter.answered()
        return LineAnswer(status=response.status_code, body=bytes(response.body), request_id=request_id)


def make_idle(valid: object) -> None:
    """Have all sequences of a valid request run on what nobody else needs.

    Raises:
        TypeError: the endpoint's requests have none.
    """
    job = valid.job if isinstance(valid, TranslatedJob) else valid
    if not isinstance(job, Job):
        raise TypeError(f"a batch cannot have requests that become a {type(valid).__name__}")
    for sequence in job.sequences:
        sequence.request.priority, sequence.request.own_priority = IDLE_PRIORITY, 0


def _valid(
    endpoint: PostEndpoint[Any, Any], body: bytes, context: ServerContext, tenant: Tenant
) -> tuple[Mapping[str, str], object]:
    """What a body asks for, and the headers of its answer."""
    parsed = parse(endpoint.body, body, None, context.settings)
    return parsed.headers, endpoint.validate(parsed.request, context, tenant)


def _refused(error: ApiError, request_id: str) -> LineAnswer:
    fault: Fault = "none"
    if isinstance(error, QueueFull | Unavailable):
        fault = "busy"
    elif isinstance(error, InternalError) and not isinstance(error, PoisonRequest):
        fault = "broken"
    return LineAnswer(status=error.status, body=json.dumps(error.body()).encode(), request_id=request_id, fault=fault)


def _request(path: str, state: dict[str, object]) -> Request:
    """A request whose body has been read, of a client that stays."""

    async def stays() -> Message:
        return await asyncio.Future()

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [],
        "state": state,
    }
    return Request(scope, stays)
