"""Every refusal the server can answer with. One class a cause; the code is stable and doubles as a metric label.

    ApiError
    ├── InvalidRequest           400  a field is wrong: names the field, the limit and the value
    │   ├── UnknownField         400  nobody knows this field; names the nearest known one
    │   ├── UnsupportedField     400  in OpenAI's schema, not served here yet
    │   └── ContextExceeded      400  prompt plus output is longer than what fits
    ├── Unauthorized             401  no key, or a wrong one
    ├── NotFound                 404  no such route
    ├── ModelNotFound            404  no such model
    ├── MethodNotAllowed         405
    ├── BodyTooLarge             413
    ├── QueueFull                429  with Retry-After from measured speed
    ├── InternalError            500  a defect of ours
    │   └── GenerationFailed     500  the engine failed this request
    └── Unavailable              503  starting, draining, or the engine died; with Retry-After
        └── EngineDied           503  while this request was open

The body is OpenAI's: `{"error": {"message", "type", "param", "code"}}`, all four always present.
"""

from typing import Any, ClassVar


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


class NotFound(ApiError):
    """No such route."""

    status, type, code = 404, "invalid_request_error", "not_found"


class ModelNotFound(NotFound):
    """No model of that name."""

    code = "model_not_found"


class MethodNotAllowed(ApiError):
    """The route exists for another method."""

    status, type, code = 405, "invalid_request_error", "method_not_allowed"


class BodyTooLarge(ApiError):
    """The body is larger than `max_body_bytes`."""

    status, type, code = 413, "invalid_request_error", "body_too_large"


class QueueFull(ApiError):
    """As many sequences wait as `max_waiting` allows."""

    status, type, code = 429, "rate_limit_error", "queue_full"


class InternalError(ApiError):
    """A defect of the server; the log has the traceback."""


class GenerationFailed(InternalError):
    """The engine failed this one request."""

    code = "generation_failed"


class Unavailable(ApiError):
    """The server cannot take requests now."""

    status, type, code = 503, "service_unavailable_error", "unavailable"


class EngineDied(Unavailable):
    """The engine process ended while the request was open."""

    code = "engine_died"
