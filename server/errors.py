"""Every refusal the server can answer with, and how it is rendered.

One class for each cause; the code is stable and doubles as a metric label.

    ApiError
    ├── InvalidRequest           400  a field is wrong: names the field, the limit and the value
    │   ├── UnknownField         400  not a known field; names the nearest known one
    │   ├── UnsupportedField     400  in OpenAI's schema, not served here yet
    │   └── ContextExceeded      400  prompt plus output is longer than what fits
    ├── Unauthorized             401  no key, or a wrong one
    ├── ForbiddenHost            403  the server is not served under this name
    ├── ForbiddenOrigin          403  a page of another origin
    ├── ForbiddenKey             403  this key may not do that
    ├── NotFound                 404  no such route
    ├── ModelNotFound            404  no such model
    ├── TaskNotServed            404  the model is there, and not for this
    ├── EngineNotFound           404  no such engine
    ├── ResponseNotFound         404  no such stored response, or another tenant's
    ├── StreamNotFound           404  no such resumable stream, or another key's
    ├── NotKept                  404  no such file or batch, or another key's
    │   └── NothingKept          404  the server keeps neither
    ├── MethodNotAllowed         405
    ├── Conflict                 409  not in the state that something is in
    │   └── StreamTaken          409  another connection reads on in this one's place
    ├── EventsDropped            410  what comes next in a resumable stream is kept no longer
    │   ├── StreamDeleted        410  the stream as a whole
    │   └── StreamOverrun        410  more waited for its client than is kept
    ├── MalformedRequest         400  the bytes are no HTTP request, or could be read in two ways
    ├── RequestTimeout           408  the client was too slow in sending the request
    ├── BodyTooLarge             413
    ├── UnsupportedMediaType     415  no JSON in UTF-8, or a content coding that is not served
    ├── HeadTooLarge             431
    ├── QueueFull                429  with Retry-After from measured speed
    ├── RateLimited              429  a limit of this API key; with Retry-After: when it would pass
    ├── DeadlineRefused          429  with the quote: `deadline_ms` could not be kept
    ├── TooManyBatches           429  that have not ended
    ├── StorageFull              507  no room for a file
    ├── TooManyResponses         429  in the background
    ├── TooManyStreams           429  those that are kept leave no room for a resumable one
    ├── InternalError            500  a defect of ours
    │   ├── GenerationFailed     500  the engine failed this request
    │   └── PoisonRequest        500  engines died of this request
    └── Unavailable              503  starting, draining, or the engine died; with Retry-After
        ├── TooManyConnections   503  in all, or from this address
        ├── TooManyBodies        503  there was no room for this one
        └── EngineDied           503  while this request was open, and no other took it over

The body is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, all four always present; an endpoint of another API may
have another (`Endpoint.error_body`). Every code that a client gets is recorded on its exchange.
"""

import json
import re
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope


class _Recorded(Protocol):
    """Where the code of an answered error is noted, and the field at fault: the exchange of the request."""

    request_id: str
    error_code: str | None
    error_param: str | None


class ApiError(Exception):
    """Base: an answer with a status, raised anywhere while a request is handled.

    Args:
        message: one sentence for the caller; names limit and value where there are any.
        param: the request field at fault, as a path (`messages[0].content`), or None.
        headers: extra response headers.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


class InvalidRequest(ApiError):
    """A field is missing, of the wrong type, or out of bounds."""

    status, type, code = 400, "invalid_request_error", "invalid_value"


class UnknownField(InvalidRequest):
    """A field that neither OpenAI nor headrace knows."""

    code = "unknown_field"


class UnsupportedField(InvalidRequest):
    """A field of OpenAI's schema that is not served yet."""

    code = "unsupported_field"


class ContextExceeded(InvalidRequest):
    """The prompt, or the prompt plus what was asked for, cannot fit."""

    code = "context_length_exceeded"


class Unauthorized(ApiError):
    """No API key, or one the server does not know."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class ForbiddenHost(ApiError):
    """The Host of the request is no name of this server."""

    status, type, code = 403, "invalid_request_error", "forbidden_host"


class ForbiddenOrigin(ApiError):
    """The request is from a web page of another origin, and CORS does not allow it."""

    status, type, code = 403, "invalid_request_error", "forbidden_origin"


class ForbiddenKey(ApiError):
    """The key is known, and may not do this."""

    status, type, code = 403, "authentication_error", "forbidden_key"


class NotFound(ApiError):
    """No such route."""

    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    """No model of that name."""

    code = "model_not_found"


class TaskNotServed(NotFound):
    """The model is served, but not for what this endpoint does."""

    code = "task_not_served"


class EngineNotFound(NotFound):
    """No engine of that name."""

    code = "engine_not_found"


class RequestNotFound(NotFound):
    """No request of that id is remembered for this key."""

    code = "request_not_found"


class ResponseNotFound(NotFound):
    """No response of that id is stored for this tenant."""

    code = "response_not_found"


class StreamNotFound(NotFound):
    """No resumable stream of that id is kept for this key."""

    code = "stream_not_found"


class NotKept(NotFound):
    """No file or batch of that id is kept for this key."""

    code = "object_not_found"


class NothingKept(NotKept):
    """Files and batches need a folder, and the server was given none."""

    code = "no_data_dir"


class Conflict(ApiError):
    """What is asked for cannot be done to something in this state."""

    status, type, code = 409, "invalid_request_error", "conflict"


class StreamTaken(Conflict):
    """Another connection went on with the resumable stream; the last event of the one before."""

    code = "stream_taken"


class EventsDropped(ApiError):
    """The next events of a resumable stream are not kept any more."""

    status, type, code = 410, "invalid_request_error", "events_dropped"


class StreamDeleted(EventsDropped):
    """The resumable stream was deleted, or is kept no longer; the last event of who still reads it."""

    code = "stream_deleted"


class StreamOverrun(EventsDropped):
    """More of a resumable stream waited for its client than is kept, so that the rest was not computed; its last event."""

    code = "stream_overrun"


class MethodNotAllowed(ApiError):
    """The route exists for another method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class BodyTooLarge(ApiError):
    """The body is larger than `max_body_bytes`."""

    status, type, code = 413, "invalid_request_error", "body_too_large"


class UnsupportedMediaType(ApiError):
    """The body's type, charset or content coding is not served."""

    status, type, code = 415, "invalid_request_error", "unsupported_media_type"


class MalformedRequest(ApiError):
    """The bytes are no HTTP request, or one that could be read in two ways."""

    status, type, code = 400, "invalid_request_error", "malformed_http"


class RequestTimeout(ApiError):
    """The client was too slow in sending the head or the body."""

    status, type, code = 408, "invalid_request_error", "request_timeout"


class HeadTooLarge(ApiError):
    """The head is over a limit: in bytes, in headers, or in the length of a line."""

    status, type, code = 431, "invalid_request_error", "head_too_large"


class QueueFull(ApiError):
    """As many sequences wait as `max_waiting` allows."""

    status, type, code = 429, "rate_limit_error", "queue_full"


class RateLimited(ApiError):
    """A limit of this API key is used up. `limit`: its name in the file of keys."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, headers: dict[str, str] | None = None, limit: str = ""
    ) -> None:
        super().__init__(message, param=param, headers=headers)
        self.limit = limit


class TooManyBatches(ApiError):
    """As many batches as there may be have not ended."""

    status, type, code = 429, "rate_limit_error", "too_many_batches"


class StorageFull(ApiError):
    """There is no room for a file."""

    status, type, code = 507, "server_error", "storage_full"


class TooManyResponses(ApiError):
    """As many responses run in the background as may."""

    status, type, code = 429, "rate_limit_error", "too_many_responses"


class TooManyStreams(ApiError):
    """Resumable streams that are kept take all the room there is for them."""

    status, type, code = 429, "rate_limit_error", "too_many_streams"


class DeadlineRefused(ApiError):
    """What the request needs would not be there in time. `quote_ms`: when it could be expected, from the request's arrival."""

    status, type, code = 429, "rate_limit_error", "deadline_refused"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = "deadline_ms",
        headers: dict[str, str] | None = None,
        quote_ms: float | None = None,
    ) -> None:
        super().__init__(message, param=param, headers=headers)
        self.quote_ms = quote_ms

    def body(self) -> dict[str, Any]:
        """The JSON body, with the quote where there is one."""
        body = super().body()
        if self.quote_ms is not None:
            body["error"]["quote_ms"] = self.quote_ms
        return body


class InternalError(ApiError):
    """A defect of the server; the log has the traceback."""


class GenerationFailed(InternalError):
    """The engine failed this one request."""

    code = "generation_failed"


class PoisonRequest(InternalError):
    """Engines died while they computed this one request, so it is given to no further one."""

    code = "poison_request"


class Unavailable(ApiError):
    """The server cannot take requests now."""

    status, type, code = 503, "service_unavailable_error", "unavailable"


class TooManyConnections(Unavailable):
    """As many connections are open as there may be, in all or from one address."""

    code = "too_many_connections"


class TooManyBodies(Unavailable):
    """The bodies of other requests took all the room there is, until these are parsed."""

    code = "too_many_bodies"


class EngineDied(Unavailable):
    """The engine process ended while the request was open, and none could go on with it."""

    code = "engine_died"


# --- texts of other origin ---

_ADDRESS = re.compile(r"(?: at)? ?\b0x[0-9a-fA-F]{3,}")
_PATH = re.compile(r"""(?<![\w.:/])(?:[A-Za-z]:)?/(?:[^\s/'"<>:;,()]+/)+(?=[^\s/'"<>:;,()])""")
_CODE = re.compile(r"\b(?:server|scheduler|engine|kernels|configs|torch|triton|jinja2)(?:\.\w+)+")
_LONGEST = 400  # characters


def for_clients(text: str) -> str:
    """What an exception or another process said, as a client may read it: one line without addresses, without folders (a file keeps
    its name), without modules (a name in one keeps its last part), and of a traceback the last line. The log has it in full."""
    before, _, traceback = text.partition("Traceback (most recent call last)")
    lines = [*before.split("\n"), *traceback.strip().split("\n")[-1:]]
    told = _PATH.sub("", " ".join(" ".join(lines).split()).replace("file://", ""))
    told = _ADDRESS.sub("", told)
    told = _CODE.sub(lambda name: name[0].rpartition(".")[2], told)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."


# --- rendering -----------------------------------------------------------------------------------------------------


# The JSON of an error, and of the id of the request that it answers.
ErrorBody = Callable[[ApiError, str], dict[str, Any]]


def openai_body(error: ApiError, request_id: str) -> dict[str, Any]:
    """OpenAI's, in which the id is only a header."""
    return error.body()


def error_response(error: ApiError, scope: Scope, status: int | None = None) -> Response:
    """The answer for an error, in the form of the endpoint that was asked. The JSON is ASCII: a message may quote what cannot be
    encoded as UTF-8."""
    state = scope.get("state", {})
    exchange: _Recorded | None = state.get("exchange")
    if exchange is not None:
        exchange.error_code, exchange.error_param = error.code, error.param
    spelled: ErrorBody = state.get("error_body", openai_body)
    body = spelled(error, "" if exchange is None else exchange.request_id)
    return Response(json.dumps(body), status or error.status, error.headers, media_type="application/json")


def install_handlers(app: FastAPI) -> None:
    """Answer the errors that endpoints and routing raise. Unforeseen exceptions are left to `server.middleware.ErrorBoundary`."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.scope)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers, path = dict(error.headers or {}), request.scope["path"][:200]  # `request.url` fails on some Host headers
    if error.status_code == 404:
        return error_response(NotFound(f"There is no route {path!r}.", headers=headers), request.scope)
    if error.status_code == 405:
        allowed = headers.get("Allow") or headers.get("allow")
        message = f"{path} does not take {request.method[:40]}" + (f"; it takes {allowed}." if allowed else ".")
        return error_response(MethodNotAllowed(message, headers=headers), request.scope)
    kind = InvalidRequest if error.status_code < 500 else InternalError
    return error_response(kind(str(error.detail), headers=headers), request.scope, error.status_code)
