"""`GET /v1/requests/{id}`: why a request was slow, and why it found nothing in the KV cache."""

import functools
from dataclasses import dataclass

from scheduler.types.output_kind import OutputKind
from scheduler.types.trail import PromptChunk, Wait
from server.api.endpoint import Call, GetEndpoint
from server.errors import RequestNotFound
from server.schema.request_story import (
    ChunkStory,
    EngineStory,
    LoadStory,
    MissStory,
    PreemptionStory,
    RequestStory,
    SequenceStory,
    WaitStory,
)
from server.schema.shown import shown
from server.stream.content import content_of
from server.stream.job import Job
from server.stream.logged_blocks import logged_blocks
from server.stream.trace_attributes import attributes_of
from server.telemetry.black_box import NotedRequest, NotedSequence, packed
from server.telemetry.explain import Reader, TextOf, request_sentences, shortened
from server.telemetry.lifetime import EngineRun
from server.telemetry.misses import Miss, why_missed
from server.text.detokenizer import text_of_tokens
from server.text.tokenizer import Tokenizer
from server.to_thread import to_thread_if_larger

_INLINE_PAIRS = 256  # of sequences that are compared, some hundredths of a millisecond each


def note(job: Job, call: Call) -> None:
    """Remember a job that was submitted, whose lifetimes are its exchange's, and its texts if the operator wants them told."""
    box, exchange = call.context.black_box, call.exchange
    if call.context.settings.log_content:
        exchange.content = content_of(job, exchange, call.context.tokenizer)
    if call.context.settings.log_blocks:
        exchange.blocks = functools.partial(logged_blocks, job, exchange.session)
    if exchange.trace_id:
        exchange.attributes = attributes_of(job, exchange)
    if not (box.size and exchange.remembered):
        return
    prompts: dict[int, bytes] = {}  # choices of one prompt share it
    sequences = []
    for sequence, lifetime in zip(job.sequences, exchange.lifetimes, strict=True):
        request = sequence.request
        key = id(request.prompt_ids)
        if key not in prompts:
            prompts[key] = packed(request.prompt_ids)
        reads = request.produces is OutputKind.TOKENS and request.sampling.prompt_logprobs is None
        sequences.append(
            NotedSequence(lifetime=lifetime, prompt=prompts[key], salt=request.cache_salt, reads_cache=reads)
        )
    box.note(
        NotedRequest(
            id=job.id,
            request_id=exchange.request_id,
            owner=call.tenant.name,
            tenant=job.sequences[0].request.tenant,
            model=job.model,
            created=job.created,
            received=exchange.received,
            sequences=sequences,
        )
    )


async def _story(call: Call) -> RequestStory:
    context, name = call.context, call.request.path_params["request"]
    box, settings = context.black_box, context.settings
    everybodys = call.tenant.admin
    record = box.find(name, call.tenant.name, everybodys=everybodys)
    if record is None:
        last = f"the last {box.size} are" if box.size else "none is (black_box_requests is 0)"
        raise RequestNotFound(f"No request {shown(name)} of this key is remembered; {last}.", param="request")
    own = record.owner == call.tenant.name
    reader = Reader(_text_of(context.tokenizer) if box.texts and own else None, whole_ids=box.texts)
    earlier = box.earlier(record)
    pairs = len(record.sequences) * sum(len(each.sequences) for each in earlier)
    block_size = context.info().block_size
    tell = functools.partial(
        _told, record, name, reader, earlier, block_size=block_size, caching=settings.prefix_caching
    )
    return await to_thread_if_larger(pairs, _INLINE_PAIRS, tell)


def _told(
    record: NotedRequest, name: str, reader: Reader, earlier: list[NotedRequest], *, block_size: int, caching: bool
) -> RequestStory:
    """The story of a request, for one who asked for it by this name."""
    misses = why_missed(earlier, record, block_size=block_size, caching=caching, salts=reader.whole_ids)
    return RequestStory(
        summary=request_sentences(record, misses, reader),
        id=record.id if name == record.id else reader.name(record.id),
        request_id=record.request_id,
        tenant=record.tenant,
        model=record.model,
        created=record.created,
        open=not record.ended,
        sequences=[
            _sequence(index, sequence, record.received, miss, reader)
            for index, (sequence, miss) in enumerate(zip(record.sequences, misses, strict=True))
        ],
    )


def _text_of(tokenizer: Tokenizer) -> TextOf:
    return lambda tokens: text_of_tokens(tokenizer, memoryview(tokens).cast("I").tolist())


def _sequence(index: int, sequence: NotedSequence, received: float, miss: Miss | None, reader: Reader) -> SequenceStory:
    lifetime = sequence.lifetime
    return SequenceStory(
        index=index,
        finish_reason=None if lifetime.reason is None else lifetime.reason.value,
        prompt_tokens=lifetime.prompt_tokens,
        cached_tokens=lifetime.cached_tokens,
        completion_tokens=lifetime.completion_tokens,
        preemptions=lifetime.preemptions,
        replays=lifetime.replays,
        timings=lifetime.timings(),
        miss=None if miss is None else _miss(sequence, miss, reader),
        engines=[_engine(run, received, reader) for run in list(lifetime.runs)],
    )


def _miss(sequence: NotedSequence, miss: Miss, reader: Reader) -> MissStory:
    nearest = miss.nearest
    story = MissStory(
        cause=miss.cause.value,
        tokens=miss.tokens,
        lost_tokens=miss.lost,
        nearest=None if nearest is None else reader.name(nearest.record.id),
        position=None if nearest is None else nearest.common,
    )
    if nearest is not None and reader.text_of is not None:
        here, there = map(reader.text_of, nearest.continuations(sequence.prompt))
        story.text_here, story.text_there = shortened(here), shortened(there)
    return story


@dataclass(frozen=True, slots=True)
class _Since:
    """Milliseconds since a request was received."""

    received: float

    def ms(self, stamp: float) -> float:
        return round(1000 * (stamp - self.received), 3)

    def maybe(self, stamp: float | None) -> float | None:
        return None if stamp is None else self.ms(stamp)


def _engine(run: EngineRun, received: float, reader: Reader) -> EngineStory:
    times, trail, since = run.times, run.trail, _Since(received)
    return EngineStory(
        engine=run.engine,
        queued_ms=since.ms(times.queued),
        scheduled_ms=since.ms(times.scheduled),
        first_token_ms=since.maybe(times.first_token),
        finished_ms=since.maybe(times.finished),
        found_tokens=trail.found_tokens,
        waits=[_wait(wait, since, reader) for wait in trail.waits],
        chunks=[_chunk(chunk, since) for chunk in trail.chunks],
        more_chunks=trail.more_chunks,
        preemptions=[
            PreemptionStory(
                at_ms=since.ms(each.at),
                by=reader.owner(each.by),
                lost_tokens=each.lost,
                saved=each.saved,
                resumed_ms=since.maybe(each.resumed),
            )
            for each in trail.preemptions
        ],
        loads=[
            LoadStory(
                since_ms=since.ms(each.since),
                until_ms=since.maybe(each.until),
                blocks=each.blocks,
                tiers=each.tiers,
                whole=each.whole,
            )
            for each in trail.loads
        ],
    )


def _wait(wait: Wait, since: _Since, reader: Reader) -> WaitStory:
    return WaitStory(
        cause=wait.cause.value,
        since_ms=since.ms(wait.since),
        until_ms=since.ms(wait.until),
        behind=reader.owner(wait.behind) or None,
        lacking_blocks=wait.lacking,
        running=wait.running,
        holders=[reader.owner(each) for each in wait.holders],
    )


def _chunk(chunk: PromptChunk, since: _Since) -> ChunkStory:
    return ChunkStory(
        step=chunk.step,
        start=chunk.start,
        tokens=chunk.tokens,
        planned_ms=since.ms(chunk.planned),
        ended_ms=since.maybe(chunk.ended),
        step_tokens=chunk.step_tokens,
        step_ms=round(1000 * chunk.step_seconds, 3),
    )


ENDPOINT = GetEndpoint(
    path="/v1/requests/{request}",
    tag="operations",
    summary="Why a request was slow, and why it missed the KV cache, by the id of its answer or its `x-request-id`",
    answer=_story,
    answers=RequestStory,
    errors=(401, 404, 503),
    parameters=[{"name": "request", "in": "path", "required": True, "schema": {"type": "string"}}],
    while_draining=True,
)
