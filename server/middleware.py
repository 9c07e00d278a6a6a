"""Pure ASGI middleware, outermost first: exchange and access log, HEAD, keys, their limits, drain gate, body size.

Each endpoint says what it needs of them; they are given tests of a request's scope. What is for no endpoint is treated like most:
it needs a key and is refused while the server drains.
"""

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.tenants import ANYBODY, KeyRing, Tenant
from server.drain import Drain
from server.errors import (
    ApiError,
    BodyTooLarge,
    ErrorBody,
    InternalError,
    RateLimited,
    Unauthorized,
    Unavailable,
    error_response,
)
from server.keys.accounts import Accounts
from server.telemetry.access_log import access_fields
from server.telemetry.lifetime import Exchange
from server.telemetry.metrics import Metrics
from server.telemetry.tenants import ANYBODYS
from server.telemetry.traces.sending import Tracing

RequestTest = Callable[[Scope], bool]

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_CLOSE = {"Connection": "close"}  # the rest of the body is not read
_log = logging.getLogger("headrace.server")
_access_log = logging.getLogger("headrace.access")


class ExchangeMiddleware:
    """Gives every request its `Exchange`, its `x-request-id` (the client's own if it is short and plain), and the form in which
    errors are told to it.

    At the end, whatever ended the request, the error code is counted and the access log's line is written. The "not now" of
    probes is not counted: polls would drown the errors of requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        access_log: bool,
        is_probe: RequestTest,
        operation_of: Callable[[Scope], str],
        error_body_of: Callable[[Scope], ErrorBody],
        tracing: Tracing | None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._is_probe = is_probe
        self._operation_of = operation_of
        self._error_body_of = error_body_of
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = self._begin(scope)
        trace = self._tracing.begin(Headers(scope=scope), exchange) if self._tracing and exchange.operation else None
        exchange.trace_id = trace.id if trace else ""
        status = None

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, exchange.answered = message["status"], time.monotonic()
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = exchange.request_id
                if trace is not None:
                    headers["traceresponse"] = trace.response_header
            else:
                exchange.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            if exchange.error_code is not None and not self._is_probe_answer(scope, exchange):
                self._metrics.request_failed(exchange.error_code, self._tenant_of(scope))
            now = time.monotonic()
            if exchange.operation:
                self._metrics.gen_ai.request_ended(exchange, now)
            if trace is not None:
                trace.end(exchange, scope, status, now)
            if self._access_log:
                _access_log.info(access_fields(scope, exchange, status))

    def _begin(self, scope: Scope) -> Exchange:
        """The request's record: ids that a client chose are kept if they are short and plain."""
        received, headers = time.monotonic(), Headers(scope=scope)
        offered, session = headers.get("x-request-id", ""), headers.get("x-session-id", "")
        exchange = Exchange(
            request_id=offered if _REQUEST_ID.fullmatch(offered) else f"req-{secrets.token_hex(12)}",
            received=received,
            operation=self._operation_of(scope),
            session=session if _REQUEST_ID.fullmatch(session) else None,
        )
        state = scope.setdefault("state", {})
        state["exchange"], state["error_body"] = exchange, self._error_body_of(scope)
        return exchange

    def _tenant_of(self, scope: Scope) -> str | None:
        tenant: Tenant | None = scope["state"].get("tenant")
        return None if tenant is None else tenant.name_for(ANYBODYS)

    def _is_probe_answer(self, scope: Scope, exchange: Exchange) -> bool:
        return exchange.error_code == Unavailable.code and self._is_probe(scope)


class HeadMiddleware:
    """Answers HEAD as GET, but for the body, and is done with the head: what would stream finds that the client has left.

    Endpoints to which a GET means more find `request.state.head`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        scope.setdefault("state", {})["head"] = True
        await self._app({**scope, "method": "GET"}, receive, bodiless)


class AuthMiddleware:
    """Guards every request, whatever it is for, except those `without_key`.

    Endpoints find whose key it was at `request.state.tenant`.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, without_key: RequestTest) -> None:
        self._app = app
        self._keys = keys
        self._without_key = without_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            tenant = self._keys.sender(scope["headers"]) if self._keys.required else ANYBODY
        except Unauthorized as error:
            if not self._without_key(scope):
                await error_response(error, scope)(scope, receive, send)
                return
            tenant = ANYBODY
        scope.setdefault("state", {})["tenant"] = tenant
        await self._app(scope, receive, send)


class LimitMiddleware:
    """Counts what keys send, and refuses what is over their limits. A POST is a request that counts; what only asks does not.

    Only a server that keeps accounts has it. Answers to a key with limits say how much of them is left.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self._app = app
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        tenant: Tenant = scope["state"]["tenant"] if scope["type"] == "http" else ANYBODY
        if tenant.key is None:
            await self._app(scope, receive, send)
            return
        account, exchange = self._accounts.of(tenant.key, tenant.limits), scope["state"]["exchange"]

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *account.headers()]
            await send(message)

        sending = told if tenant.limits.any else send
        if scope["method"] != "POST":
            await self._app(scope, receive, sending)
            return
        try:
            meter = account.begin(exchange)
        except RateLimited as error:
            await error_response(error, scope)(scope, receive, sending)
            return
        exchange.meter = meter
        try:
            await self._app(scope, receive, sending)
        finally:
            meter.answered()


class DrainMiddleware:
    """Counts requests under way, and answers 503 to new ones once the server drains, but for those that `always` exempts."""

    def __init__(self, app: ASGIApp, drain: Drain, retry_after: int, always: RequestTest) -> None:
        self._app = app
        self._drain = drain
        self._retry_after = str(retry_after)
        self._always = always

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or self._always(scope):
            await self._app(scope, receive, send)
            return
        if self._drain.draining:
            headers = {"Retry-After": self._retry_after, "Connection": "close"}
            error = Unavailable("The server is shutting down and takes no new requests.", headers=headers)
            await error_response(error, scope)(scope, receive, send)
            return
        self._drain.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._drain.leave()


class BodySizeMiddleware:
    """Refuses a body larger than the limit: by its Content-Length before it is read, else as soon as too much has arrived.

    `limit_of` says for a request how many bytes it may have, and which setting says so.
    """

    def __init__(self, app: ASGIApp, limit_of: Callable[[Scope], tuple[int, str]]) -> None:
        self._app = app
        self._limit_of = limit_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, setting = self._limit_of(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            await error_response(_too_large(declared, limit, setting), scope)(scope, receive, send)
            return
        await self._count(limit, setting, scope, receive, send)

    async def _count(self, limit: int, setting: str, scope: Scope, receive: Receive, send: Send) -> None:
        arrived, overflow, started = 0, False, False

        async def counted() -> Message:
            nonlocal arrived, overflow
            message = await receive()
            arrived += len(message.get("body", b""))
            if arrived > limit:
                overflow = True
                raise _too_large(f"more than {limit}", limit, setting)
            return message

        async def held(message: Message) -> None:
            nonlocal started
            if overflow and not started:
                return  # a handler's answer to the truncated body; the refusal below replaces it
            started = True
            await send(message)

        with contextlib.suppress(BodyTooLarge):
            await self._app(scope, counted, held)
        if overflow and not started:
            error = _too_large(f"more than {limit}", limit, setting)
            await error_response(error, scope)(scope, receive, send)


def _too_large(size: str, limit: int, setting: str) -> BodyTooLarge:
    return BodyTooLarge(f"The request body has {size} bytes; the limit ({setting}) is {limit}.", headers=_CLOSE)


class ErrorBoundary:
    """Innermost middleware: an unforeseen exception becomes a 500, and its traceback one entry in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            return  # the client left while it was sending; there is nobody to answer
        except Exception as failure:
            error = failure if isinstance(failure, ApiError) else InternalError("The server failed; see its log.")
            if error is not failure:
                _log.exception("%s %r failed", scope.get("method"), scope.get("path"))
            response = error_response(error, scope)
            if not started:  # otherwise the web server cuts the connection, which is all that can be said by then
                await response(scope, receive, send)
