"""`POST /v1/completions` and `POST /v1/chat/completions`: two bodies, one way through."""

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.body import handle
from server.api.context import Services
from server.api.formats import ChunkWriter, answer_body, format_of
from server.api.tenants import Caller
from server.api.validate import Job, chat_job, completion_job
from server.schema.answers import ChatAnswer, CompletionAnswer, errors
from server.schema.chat import ChatRequest
from server.schema.completions import CompletionRequest
from server.schema.openapi import request_body
from server.schema.sampling import Sampling
from server.stream.generation import Delta, Generation, scored_tokens
from server.stream.sse import CLIENT_GONE, EventStream, unless_disconnected
from server.telemetry.lifetime import Exchange
from server.to_thread import INLINE_SCORED_TOKENS, work_of

_STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With `stream`; see docs/sse.md."}}}
_COMPLETION_EXAMPLES = {"greedy": {"value": {"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}}}
_CHAT_EXAMPLES = {"hello": {"value": {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16}}}
_ERRORS = errors(400, 401, 404, 413, 429, 500, 503)


def build_router(services: Services) -> APIRouter:
    """The two routes."""
    router = APIRouter(tags=["generate"])

    @router.post(
        "/v1/completions",
        summary="Continue a text",
        responses={**_ERRORS, 200: {"model": CompletionAnswer, "content": _STREAM}},
        openapi_extra=request_body(CompletionRequest, services.settings, _COMPLETION_EXAMPLES),
    )
    async def completions(request: Request) -> Response:
        return await generate(request, services, CompletionRequest, completion_job)

    @router.post(
        "/v1/chat/completions",
        summary="Answer a conversation",
        responses={**_ERRORS, 200: {"model": ChatAnswer, "content": _STREAM}},
        openapi_extra=request_body(ChatRequest, services.settings, _CHAT_EXAMPLES),
    )
    async def chat_completions(request: Request) -> Response:
        return await generate(request, services, ChatRequest, chat_job)

    return router


async def generate(
    request: Request, services: Services, model: type[Any], make_job: Callable[[Any, Services, Caller], Job]
) -> Response:
    """Parse, submit, and answer in the form that was asked for.

    Raises:
        ApiError: the request is refused, or it ended before the answer began.
    """
    caller: Caller = request.state.caller
    job, parsed = await handle(request, services, model, lambda body, _: make_job(body, services, caller))
    exchange: Exchange = request.state.exchange
    exchange.validated = time.monotonic()
    generation = Generation(job, services.engine, services.tokenizer, exchange)
    body: Sampling = job.body
    if body.stream:
        return await _streamed(request, generation, services, exchange, parsed.headers)
    return await _whole(request, generation, services, parsed.headers)


async def _streamed(
    request: Request, generation: Generation, services: Services, exchange: Exchange, headers: dict[str, str]
) -> Response:
    answer = format_of(generation.job, services.tokenizer)
    stream = EventStream(generation, ChunkWriter(generation, answer, services.fingerprint), exchange, headers)
    return stream if await stream.start(request.receive) else _client_left()


async def _whole(request: Request, generation: Generation, services: Services, headers: dict[str, str]) -> Response:
    try:
        deltas = await unless_disconnected(_collect(generation), request.receive)
    finally:
        generation.close()
    if deltas is None:
        return _client_left()
    answer = format_of(generation.job, services.tokenizer)
    content = await work_of(
        scored_tokens(deltas),
        INLINE_SCORED_TOKENS,
        lambda: answer_body(generation, answer, deltas, services.fingerprint),
    )
    return Response(content, media_type="application/json", headers=headers)


async def _collect(generation: Generation) -> list[Delta]:
    return [delta async for deltas in generation.steps() for delta in deltas]


def _client_left() -> Response:
    """An answer that nobody reads."""
    return Response(status_code=CLIENT_GONE)
