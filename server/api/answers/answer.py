"""How a job is answered, one path for each kind of result: text as a stream or as one JSON object, vectors and scores as JSON.

Each path is given its endpoint's form, and ends what it submitted when the client leaves.
"""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.responses import Response

from scheduler.types.output_kind import Pooled
from server.api.answers.formats import AnswerFormat, ChunkWriter, answer_body
from server.api.endpoint import Call, json_response
from server.schema.answers import AnswerBody
from server.schema.sampling import Sampling
from server.stream.generation import Delta, Generation, scored_tokens
from server.stream.job import Job, TextJob
from server.stream.pooled import pooled
from server.stream.sse import CLIENT_GONE, EventStream, unless_disconnected
from server.stream.submission import Submission
from server.text.tokenizer import Tokenizer
from server.to_thread import INLINE_SCORED_TOKENS, to_thread_if_larger

S = TypeVar("S", bound=Sampling)

# What an endpoint whose jobs go to the engine declares: its errors, and the second content type of text.
ERRORS = (400, 401, 404, 413, 415, 429, 500, 503)
STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With `stream`; see docs/sse.md."}}}


def text_answer(
    form: Callable[[TextJob[S], Tokenizer], AnswerFormat[S]],
) -> Callable[[TextJob[S], Call], Awaitable[Response]]:
    """The `answer` of an endpoint whose jobs are text, written in the shape that `form` makes."""

    async def answer(job: TextJob[S], call: Call) -> Response:
        tokenizer = call.context.tokenizer
        written = form(job, tokenizer)
        engine = call.context.engines.choose(job)
        fingerprint = engine.fingerprint
        generation = Generation(job, engine, tokenizer, call.exchange)
        return await (_streamed if job.body.stream else _whole)(generation, written, fingerprint, call)

    return answer


def pooled_answer(form: Callable[[Job, list[Pooled]], AnswerBody]) -> Callable[[Job, Call], Awaitable[Response]]:
    """The `answer` of an endpoint whose jobs are vectors or scores, one for each sequence."""

    async def answer(job: Job, call: Call) -> Response:
        submission = Submission(job, call.context.engines.choose(job), call.exchange)
        try:
            results = await unless_disconnected(pooled(submission), call.request.receive)
        finally:
            submission.close()
        return _client_left() if results is None else json_response(form(job, results), call.headers)

    return answer


async def _streamed(generation: Generation, form: AnswerFormat[Any], fingerprint: str, call: Call) -> Response:
    try:
        writer = ChunkWriter(generation, form, fingerprint)
        stream = EventStream(generation, writer, call.exchange, call.headers)
        return stream if await stream.start(call.request.receive) else _client_left()
    except BaseException:  # until the stream has started, nobody else ends what was submitted
        generation.close()
        raise


async def _whole(generation: Generation, form: AnswerFormat[Any], fingerprint: str, call: Call) -> Response:
    try:
        deltas = await unless_disconnected(_collect(generation), call.request.receive)
    finally:
        generation.close()
    if deltas is None:
        return _client_left()
    content = await to_thread_if_larger(
        scored_tokens(deltas),
        INLINE_SCORED_TOKENS,
        lambda: answer_body(generation, form, deltas, fingerprint),
    )
    return Response(content, media_type="application/json", headers=call.headers)


async def _collect(generation: Generation) -> list[Delta]:
    return [delta async for deltas in generation.steps() for delta in deltas]


def _client_left() -> Response:
    """An answer that nobody reads."""
    return Response(status_code=CLIENT_GONE)
