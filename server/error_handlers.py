"""Every failure as OpenAI's error JSON, and every code told to a client noted on its exchange."""

import json
import logging

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from server.telemetry.lifetime import Exchange

_log = logging.getLogger("headrace.server")


def error_response(error: ApiError, scope: Scope, status: int | None = None) -> Response:
    """The answer for an error. ASCII JSON: a message may quote what has no UTF-8."""
    exchange: Exchange | None = scope.get("state", {}).get("exchange")
    if exchange is not None:
        exchange.error_code = error.code
    return Response(json.dumps(error.body()), status or error.status, error.headers, media_type="application/json")


def install(app: FastAPI) -> None:
    """Answer the errors that routes and routing raise. What nobody foresaw is the `ErrorBoundary`'s."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 404:
        return error_response(NotFound(f"There is no route {request.url.path!r}.", headers=headers), request.scope)
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow")
        message = f"{request.url.path} does not take {request.method}" + (f"; it takes {allowed}." if allowed else ".")
        return error_response(MethodNotAllowed(message, headers=headers), request.scope)
    kind = InvalidRequest if error.status_code < 500 else InternalError
    return error_response(kind(str(error.detail), headers=headers), request.scope, error.status_code)


class ErrorBoundary:
    """Innermost middleware: an exception nobody foresaw becomes a 500, and its traceback one entry in the log."""

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
            return  # it left while it was sending; there is nobody to answer
        except Exception as failure:
            error = failure if isinstance(failure, ApiError) else InternalError("The server failed; see its log.")
            if error is not failure:
                _log.exception("%s %r failed", scope.get("method"), scope.get("path"))
            response = error_response(error, scope)
            if not started:  # else the connection is cut by the server, which is all that can be said by then
                await response(scope, receive, send)
