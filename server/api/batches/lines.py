"""How a line of a batch is answered: by the endpoint for which it is, as if a client had sent it, at idle priority."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import Message

from scheduler.types.messages import IDLE_PRIORITY
from server.api.context import ServerContext
from server.api.endpoint import Call, Endpoint, PostEndpoint
from server.api.requests.parse import parse
from server.api.tenants import KeyRing, Tenant
from server.batches.answers import Fault, LineAnswer
from server.batches.records import StoredBatch
from server.errors import ApiError, InternalError, PoisonRequest, QueueFull, Unavailable
from server.keys.accounts import RequestMeter
from server.stream.job import Job, TranslatedJob
from server.telemetry.lifetime import IdleExchange
from server.to_thread import in_background

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

    def models(self, batch: StoredBatch) -> Collection[str] | None:
        """The names that lines may give; None: the batch may not run now."""
        tenant = self.holder(batch)
        return None if tenant is None else self._context.names_for(tenant)

    @contextmanager
    def begin(self, batch: StoredBatch) -> Iterator["AnsweredLine"]:
        """A line of a batch that may run, until it has ended."""
        line = AnsweredLine(self, batch, self._context)
        try:
            yield line
        finally:
            line.end()

    def holder(self, batch: StoredBatch) -> Tenant | None:
        """Who made a batch; None: the key is not valid now, or the endpoint is not served."""
        return self._keys.of_key(batch.key, batch.owner) if batch.endpoint in self._endpoints else None

    def endpoint(self, batch: StoredBatch) -> PostEndpoint[Any, Any]:
        """The endpoint of a batch that has a holder."""
        return self._endpoints[batch.endpoint]


class AnsweredLine:
    """One line. It is one request of its key, however often it is tried.

    Args:
        answers: of the server.
        batch: whose line it is.
        context: the server's.
    """

    def __init__(self, answers: LineAnswers, batch: StoredBatch, context: ServerContext) -> None:
        self._answers, self._batch, self._context = answers, batch, context
        self._exchange = _exchange_of(f"req-{secrets.token_hex(12)}", "")
        self._meter: RequestMeter | None = None
        accounts, tenant = context.accounts, answers.holder(batch)
        if accounts is not None and tenant is not None and tenant.key is not None:
            self._meter = accounts.beside(tenant.key).begin(self._exchange)

    def end(self) -> None:
        """It has ended, or is given up."""
        if self._meter is not None:
            self._meter.answered()

    def failed(self) -> LineAnswer:
        """The answer if the server failed on it before there was one."""
        return self._refused(InternalError("The server failed; see its log."))

    async def answer(self, body: bytes) -> LineAnswer:
        """The answer to one attempt. Raises nothing but what is no fault of a request."""
        context, tenant = self._context, self._answers.holder(self._batch)
        if tenant is None:  # perhaps it comes back
            return self._refused(Unavailable("The key of this batch, or its endpoint, is not served now."))
        endpoint = self._answers.endpoint(self._batch)
        exchange = _exchange_of(self._exchange.request_id, endpoint.operation)
        exchange.meter = self._meter
        request = _request(endpoint.path, {"exchange": exchange, "tenant": tenant})
        try:
            headers, job = await in_background(lambda: _valid(endpoint, body, context, tenant))
            exchange.validated = time.monotonic()
            make_idle(job)
            response = await endpoint.answer(job, Call(request, context, headers))
        except ApiError as error:
            return self._refused(error)
        except Exception:
            _log.exception("a line of batch %s failed", self._batch.id)
            return self.failed()
        self._exchange.error_code = None
        return LineAnswer(status=response.status_code, body=bytes(response.body), request_id=exchange.request_id)

    def _refused(self, error: ApiError) -> LineAnswer:
        self._exchange.error_code = error.code
        content, request_id = json.dumps(error.body()).encode(), self._exchange.request_id
        return LineAnswer(status=error.status, body=content, request_id=request_id, fault=_fault_of(error))


def _exchange_of(request_id: str, operation: str) -> IdleExchange:
    return IdleExchange(request_id=request_id, received=time.monotonic(), operation=operation)


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


def _fault_of(error: ApiError) -> Fault:
    if isinstance(error, QueueFull | Unavailable):
        return "busy"
    return "broken" if isinstance(error, InternalError) and not isinstance(error, PoisonRequest) else "none"


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
