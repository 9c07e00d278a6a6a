"""What an endpoint is: everything that the router, the middleware, OpenAPI and docs/api.md need to know about it.

A new endpoint is one file beside the others that makes one of these, and one line in `endpoints.py`.
"""

import asyncio
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response
from starlette.routing import Route, compile_path
from starlette.types import Scope

from configs.settings import Settings
from server.api.context import ServerContext
from server.api.requests.content_encoding import codings_of, decoded, decoded_size
from server.api.requests.parse import Parsed, parse
from server.api.tenants import Tenant
from server.body_room import BodyShare
from server.errors import ErrorBody, openai_body
from server.schema.answers import AnswerBody, ErrorAnswer, errors
from server.schema.base import Body
from server.schema.openapi import ModelBounds, request_body
from server.telemetry.lifetime import Exchange
from server.to_thread import INLINE_BYTES, by_size

B = TypeVar("B", bound=Body)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way through its endpoint. `headers` are those that its answer carries."""

    request: Request
    context: ServerContext
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def exchange(self) -> Exchange:
        """What is recorded of the request for metrics and the access log."""
        exchange: Exchange = self.request.state.exchange
        return exchange

    @property
    def tenant(self) -> Tenant:
        """Whose request it is."""
        tenant: Tenant = self.request.state.tenant
        return tenant

    @property
    def is_head(self) -> bool:
        """Whether it is a HEAD, which is answered as a GET but for the body."""
        return getattr(self.request.state, "head", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint(ABC):
    """One path and method.

    Attributes:
        path: as FastAPI writes it; `{name:path}` may hold slashes.
        tag: the group in which it is listed.
        summary: one line, for OpenAPI and docs/api.md.
        answers: the JSON of a 200, or None where it is not JSON.
        errors: statuses other than 200 that the endpoint may answer with.
        content: further content types of a 200, in OpenAPI's form.
        empty: what a 204 says, where there may be one.
        needs_key: whether an API key is required, where the server has keys.
        while_draining: whether it is still answered while the server drains, which does not wait for it.
        probe: whether orchestrators poll it: a 503 is an ordinary answer ("not now"), which does not count as an error, and the
            Host header may name anything.
        operation: what it does, in the words of OpenTelemetry's conventions for generative AI; empty where nothing is generated.
        parameters: those in path, query and headers, in OpenAPI's form.
        error_body: how errors are told to its clients, as `error_answer` declares it.
    """

    method: ClassVar[str]
    path: str
    tag: str
    summary: str
    answers: type[AnswerBody] | None = None
    errors: Sequence[int] = ()
    content: Mapping[str, Any] = field(default_factory=dict)
    empty: str | None = None
    needs_key: bool = True
    while_draining: bool = False
    probe: bool = False
    operation: str = ""
    parameters: Sequence[Mapping[str, Any]] = ()
    error_body: ErrorBody = openai_body
    error_answer: type[AnswerBody] = ErrorAnswer

    @abstractmethod
    async def respond(self, request: Request, context: ServerContext) -> Response:
        """The answer.

        Raises:
            ApiError: the request is refused, or it ended before the answer began.
            starlette.requests.ClientDisconnect: the client left while sending the body.
        """

    @abstractmethod
    def openapi(self, settings: Settings, bounds: ModelBounds | None) -> dict[str, Any]:
        """What FastAPI cannot find out about the request by itself, in OpenAPI's form."""

    def body_limit(self, settings: Settings) -> tuple[int, str]:
        """The most bytes of a body, and the setting that says so."""
        return settings.max_body_bytes, "max_body_bytes"

    def _shown_parameters(self) -> dict[str, Any]:
        return {"parameters": [dict(parameter) for parameter in self.parameters]} if self.parameters else {}

    @property
    def shown_path(self) -> str:
        """The path as OpenAPI and the documentation write it."""
        return self.path.replace(":path}", "}")

    def route(self, context: ServerContext) -> Route:
        """What serves it: Starlette's route, as the request is read by hand.

        FastAPI's would publish its own 422, which is never sent, and makes models of everything that it documents, for each
        application: most of what an application cost.
        """

        async def respond(request: Request) -> Response:
            return await self.respond(request, context)

        route = Route(self.path, respond, methods=[self.method], name=self._name)
        route.methods = {self.method}  # a HEAD comes as a GET, by the middleware
        return route

    def describe_in(self, router: APIRouter) -> None:
        """Add what OpenAPI has to know about it to `router`, which serves nothing."""
        answer: dict[str, Any] = {"model": self.answers} if self.answers is not None else {}
        content = {"content": dict(self.content)} if self.content else {}
        empty: dict[int | str, Any] = {204: {"description": self.empty}} if self.empty is not None else {}
        router.add_api_route(
            self.path,
            _respond,
            methods=[self.method],
            name=self._name,
            tags=[self.tag],
            summary=self.summary,
            responses={**errors(*self.errors, body=self.error_answer), **empty, 200: {**answer, **content}},
            response_class=Response,
            response_model=None,
        )

    @property
    def _name(self) -> str:
        return re.sub(r"\W+", "_", self.shown_path.removeprefix("/v1")).strip("_") or "index"


# What a described operation has for its handler. It has no docstring: FastAPI would publish it as the description.
def _respond() -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BodilessEndpoint(Endpoint):
    """A request without a body.

    Attributes:
        answer: the answer's JSON, or a response of another kind.
    """

    answer: Callable[[Call], Awaitable[AnswerBody | Response]]

    async def respond(self, request: Request, context: ServerContext) -> Response:
        """Answer at once; there is no body to validate."""
        answer = await self.answer(Call(request, context))
        return answer if isinstance(answer, Response) else json_response(answer)

    def openapi(self, settings: Settings, bounds: ModelBounds | None) -> dict[str, Any]:
        """The parameters."""
        return self._shown_parameters()


@dataclass(frozen=True, slots=True, kw_only=True)
class GetEndpoint(BodilessEndpoint):
    """Says something, and changes nothing."""

    method: ClassVar[str] = "GET"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionEndpoint(BodilessEndpoint):
    """Does something to what its path names. A body means nothing, and is not read."""

    method: ClassVar[str] = "POST"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteEndpoint(BodilessEndpoint):
    """Ends what its path names."""

    method: ClassVar[str] = "DELETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostEndpoint(Endpoint, Generic[B, V]):
    """A request whose JSON body is parsed, made valid, and answered.

    Attributes:
        body: the type of the JSON object.
        validate: makes what the body asks for, with every check that needs the model. This and the parsing are work for
            the CPU, and run in a thread if the body is long.
        answer: runs what is valid and answers. `server/api/answers/answer.py` makes it for jobs that go to the engine.
        examples: accepted bodies by name, in OpenAPI's form.
        stands_for_more: names of fields by which a short body may stand for a long one.
    """

    method: ClassVar[str] = "POST"
    body: type[B]
    validate: Callable[[B, ServerContext, Tenant], V]
    answer: Callable[[V, Call], Awaitable[Response]]
    examples: Mapping[str, Any] = field(default_factory=dict)
    stands_for_more: Sequence[bytes] = ()

    async def respond(self, request: Request, context: ServerContext) -> Response:
        """Parse, validate, answer."""
        call = Call(request, context)
        result, parsed = await self._read(call)
        call.exchange.validated = time.monotonic()
        return await self.answer(result, Call(request, context, parsed.headers))

    async def _read(self, call: Call) -> tuple[V, Parsed[B]]:
        """What the body asks for. The body itself, which may be long, is not kept while that is computed."""
        headers, settings = call.request.headers, call.context.settings
        codings, limit = codings_of(headers.getlist("content-encoding")), settings.max_body_bytes
        with call.context.bodies.share() as share:
            content = await _content(call.request, share)
            call.exchange.read = time.monotonic()
            size = await asyncio.to_thread(decoded_size, content, codings, limit) if codings else len(content)
            if any(name in content for name in self.stands_for_more):
                size = max(size, INLINE_BYTES + 1)

            def valid() -> tuple[V, Parsed[B]]:
                parsed = parse(self.body, decoded(content, codings, limit), headers.get("content-type"), settings)
                return self.validate(parsed.request, call.context, call.tenant), parsed

            return await by_size(size, valid)

    def openapi(self, settings: Settings, bounds: ModelBounds | None) -> dict[str, Any]:
        """The body's schema and examples, and the parameters."""
        return {**request_body(self.body, settings, bounds, dict(self.examples)), **self._shown_parameters()}


async def _content(request: Request, share: BodyShare) -> bytes:
    """The body, as it was sent."""
    content = bytearray()  # a list would have 40 bytes and more for each part, and some clients send parts of one byte
    async for part in request.stream():
        content += part
        await share.grow(len(part))
    return bytes(content)


class EndpointTable:
    """Which endpoint a request is for, known before it is routed.

    Args:
        endpoints: their paths and methods; of several that match, the first counts, as in routing.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._plain: dict[tuple[str, str], Endpoint] = {}
        self._patterns: list[tuple[re.Pattern[str], Endpoint]] = []
        for endpoint in endpoints:
            if "{" in endpoint.path:
                self._patterns.append((compile_path(endpoint.path)[0], endpoint))
            else:
                self._plain.setdefault((endpoint.method, endpoint.path), endpoint)

    def of(self, scope: Scope) -> Endpoint | None:
        """The endpoint of this path and method, HEAD being GET's; None: there is none."""
        method, path = "GET" if scope["method"] == "HEAD" else scope["method"], scope["path"]
        path = path.removeprefix(scope.get("root_path", "")) or "/"
        plain = self._plain.get((method, path))
        return plain or next(
            (each for regex, each in self._patterns if each.method == method and regex.match(path)), None
        )

    def operation_of(self, scope: Scope) -> str:
        """What the request's endpoint does; empty where nothing is generated."""
        endpoint = self.of(scope)
        return "" if endpoint is None else endpoint.operation

    def error_body_of(self, scope: Scope) -> ErrorBody:
        """How errors are told to who sent the request."""
        endpoint = self.of(scope)
        return openai_body if endpoint is None else endpoint.error_body

    def body_limit_of(self, scope: Scope, settings: Settings) -> tuple[int, str]:
        """The most bytes of the request's body, and the setting that says so."""
        endpoint = self.of(scope)
        return (settings.max_body_bytes, "max_body_bytes") if endpoint is None else endpoint.body_limit(settings)

    def where(self, holds: Callable[[Endpoint], bool]) -> Callable[[Scope], bool]:
        """A test of requests: whether they are for an endpoint of which that holds."""

        def test(scope: Scope) -> bool:
            endpoint = self.of(scope)
            return endpoint is not None and holds(endpoint)

        return test


def json_response(answer: AnswerBody, headers: Mapping[str, str] | None = None) -> Response:
    """The answer as JSON."""
    return Response(answer.model_dump_json(), media_type="application/json", headers=headers)
