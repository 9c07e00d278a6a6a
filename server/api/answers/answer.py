"""How a job is answered, one path for each kind of result: text as a stream or as one JSON object, vectors and scores as JSON.

Each path is given its endpoint's form, and ends what it submitted when the client leaves.
"""

import contextlib
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from starlette.responses import Response

from scheduler.types.output_kind import Pooled
from server.api.answers.formats import AnswerFormat, ChunkWriter, answer_body
from server.api.black_box import note
from server.api.endpoint import Call
from server.schema.answers import AnswerBody
from server.schema.sampling import Sampling
from server.stream.generation import Delta, Generation, scored_tokens
from server.stream.job import Job, TextJob
from server.stream.pooled import pooled
from server.stream.resumable import Source
from server.stream.resumable_answer import ResumableAnswer, has_begun
from server.stream.sse import CLIENT_GONE, EventStream, Writer, unless_disconnected
from server.stream.submission import Submission
from server.structured.grammar import Grammar
from server.text.tokenizer import Tokenizer
from server.to_thread import INLINE_NUMBERS, INLINE_SCORED_TOKENS, to_thread_if_larger

S = TypeVar("S", bound=Sampling)

# What an endpoint whose jobs go to the engine declares: its errors, and the second content type of text.
ERRORS = (400, 401, 404, 413, 415, 429, 500, 503)
STREAM = {"text/event-stream": {"schema": {"type": "string", "description": "With `stream`; see docs/sse.md."}}}


def text_answer(
    form: Callable[[TextJob[S], Tokenizer], AnswerFormat[S]],
) -> Callable[[TextJob[S], Call], Awaitable[Response]]:
    """The `answer` of an endpoint whose jobs are text, written in the shape that `form` makes."""

    async def answer(job: TextJob[S], call: Call) -> Response:
        written = form(job, call.context.tokenizer)
        if job.body.resumable:
            call.context.streams.ensure_room()
        generation, fingerprint = await begun(job, call)
        if job.body.resumable:
            return await _resumable(generation, written, fingerprint, call)
        if job.body.stream:
            return await streamed(generation, lambda: ChunkWriter(generation, written, fingerprint), call)
        return await whole(generation, lambda deltas: answer_body(generation, written, deltas, fingerprint), call)

    return answer


async def begun(job: TextJob[Any], call: Call) -> tuple[Generation, str]:
    """The job on its way through the engine that is chosen for it, and what fingerprint its answer has.

    Raises:
        InvalidRequest: what the answer has to fit cannot be compiled.
        QueueFull, DeadlineRefused, Unavailable: no engine takes it now.
    """
    if job.grammar is not None:
        await _constrain(job, job.grammar, call)
    engine = call.context.engines.choose(job, call.exchange.received)
    fingerprint = engine.fingerprint
    generation = Generation(job, engine, call.context.tokenizer, call.exchange)
    note(job, call)
    return generation, fingerprint


async def _constrain(job: TextJob[Any], grammar: Grammar, call: Call) -> None:
    """Give the compiled grammar to every sequence of the job, if there is one or it has to be.

    Raises:
        InvalidRequest: it cannot be compiled.
        Unavailable: not now.
    """
    context = call.context
    compiled = await context.grammars.compile(grammar, context.info(), call.tenant.name or "")
    if compiled is None:
        return
    for sequence in job.sequences:
        request = sequence.request
        request.sampling = replace(request.sampling, grammar=compiled.grammar, vocabulary=compiled.vocabulary)


def pooled_answer(
    form: Callable[[Job, list[Pooled]], AnswerBody | bytes],
) -> Callable[[Job, Call], Awaitable[Response]]:
    """The `answer` of an endpoint whose jobs are vectors or scores, one for each sequence; `form` makes the answer, or its JSON."""

    async def answer(job: Job, call: Call) -> Response:
        submission = Submission(job, call.context.engines.choose(job, call.exchange.received), call.exchange)
        note(job, call)
        try:
            results = await unless_disconnected(pooled(submission), call.request.receive)
        finally:
            submission.close()
        if results is None:
            return _client_left()
        numbers = sum(len(result.values) for result in results)
        content = await to_thread_if_larger(numbers, INLINE_NUMBERS, lambda: _json(form(job, results)))
        return Response(content, media_type="application/json", headers=call.headers)

    return answer


def _json(answer: AnswerBody | bytes) -> bytes:
    return answer if isinstance(answer, bytes) else answer.model_dump_json().encode()


async def streamed(generation: Generation, writer: Callable[[], Writer], call: Call) -> Response:
    """The answer as events, written by what `writer` makes; the generation ends with it, or with the client."""
    try:
        stream = EventStream(generation, writer(), call.exchange, call.headers)
        return stream if await stream.start(call.request.receive) else _client_left()
    except BaseException:  # until the stream has started, nobody else ends what was submitted
        generation.close()
        raise


async def _resumable(generation: Generation, form: AnswerFormat[Any], fingerprint: str, call: Call) -> Response:
    """A client that leaves before the answer has begun ends it: it does not know the answer's id."""
    streams, kept = call.context.streams, False
    try:
        source = _numbered(generation, ChunkWriter(generation, form, fingerprint))
        stream = streams.open(generation.job.id, call.tenant, source, generation.close, call.exchange.lifetimes)
    except BaseException:
        generation.close()
        raise
    try:
        kept = await has_begun(stream, call.request.receive)
    finally:
        (streams.keep if kept else streams.drop)(stream)
    call.exchange.stream = stream.id
    return ResumableAnswer(stream, call.exchange, call.headers) if kept else _client_left()


async def _numbered(generation: Generation, writer: ChunkWriter) -> Source:
    """The events of a stream, a step's at a time."""
    async with contextlib.aclosing(generation.steps()) as steps:
        async for deltas in steps:
            write = functools.partial(writer.events, deltas)
            yield await to_thread_if_larger(scored_tokens(deltas), INLINE_SCORED_TOKENS, write)
    yield writer.last_events()


async def whole(generation: Generation, body: Callable[[list[Delta]], bytes], call: Call) -> Response:
    """The answer as one JSON body, which `body` makes of all deltas; the generation ends with it, or with the client."""
    try:
        deltas = await unless_disconnected(_collect(generation), call.request.receive)
    finally:
        generation.close()
    if deltas is None:
        return _client_left()
    content = await to_thread_if_larger(scored_tokens(deltas), INLINE_SCORED_TOKENS, functools.partial(body, deltas))
    return Response(content, media_type="application/json", headers=call.headers)


async def _collect(generation: Generation) -> list[Delta]:
    return [delta async for deltas in generation.steps() for delta in deltas]


def _client_left() -> Response:
    """An answer that nobody reads."""
    return Response(status_code=CLIENT_GONE)
