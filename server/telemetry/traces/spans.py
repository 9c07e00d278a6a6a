"""A request as a tree of spans, from its `Exchange` and the lifetimes of its sequences: plain data, without OpenTelemetry.

chat SmolLM2-135M-Instruct
├── receive                     the body
├── validate                    parsing, checks, tokenizing
├── queue                       until an engine starts it; below it why it waited
├── prefill                     until the first token; below it chunks of the prompt and loads from tiers
├── hand over                   from one engine's last token to the next one's first
├── decode                      from the first token to the last; below it preemptions
└── stream                      from the head of the answer to its end
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scheduler.types.trail import PromptChunk, Trail
from server.telemetry.lifetime import Exchange, Lifetime

_MOST_CHOICES = 32  # of one request that have spans: a thousand would keep everybody waiting while they are made

Attribute = str | int | float | bool | Sequence[str]


@dataclass(slots=True, kw_only=True)
class SpanPlan:
    """A part of a request, from `start` to `end` in `time.monotonic()` seconds."""

    name: str
    start: float
    end: float
    attributes: dict[str, Attribute] = field(default_factory=dict)
    children: "list[SpanPlan]" = field(default_factory=list)


def parts_of(exchange: Exchange, ended: float) -> list[SpanPlan]:
    """The spans below that of the request itself, which ended then. What never began has none, nor have choices beyond the 32nd."""
    parts = [*_span("receive", exchange.received, exchange.read), *_span("validate", exchange.read, exchange.validated)]
    several = len(exchange.lifetimes) > 1
    for index, lifetime in enumerate(exchange.lifetimes[:_MOST_CHOICES]):
        inner = list(_sequence(lifetime, ended))
        if several and inner:
            end = max(span.end for span in inner)
            parts.append(SpanPlan(name=f"choice {index}", start=inner[0].start, end=end, children=inner))
        else:
            parts += inner
    return [*parts, *_span("stream", exchange.answered, ended)]


def _span(name: str, start: float | None, end: float | None, **about: Attribute) -> Iterator[SpanPlan]:
    """A span, if both of its ends are known, with what it is about under names of ours."""
    if start is not None and end is not None:
        attributes = {f"headrace.{key}": value for key, value in about.items()}
        yield SpanPlan(name=name, start=start, end=max(start, end), attributes=attributes)


def _sequence(lifetime: Lifetime, ended: float) -> Iterator[SpanPlan]:
    runs, end = lifetime.runs, lifetime.finished or ended
    for queue in _span("queue", lifetime.validated or lifetime.received, lifetime.scheduled or end):
        queue.children += [wait for run in runs[:1] for wait in _waits(run.trail, queue.end)]
        yield queue
    cached = lifetime.cached_tokens
    for prefill in _span("prefill", lifetime.scheduled, lifetime.first_token or end, cached_tokens=cached):
        for run in runs[:1]:
            prefill.attributes["headrace.engine"] = run.engine
            prefill.children += _prompt(run.trail)
        yield prefill
    for before, after in pairwise(runs):
        about = {"source": before.engine, "target": after.engine}
        loaded = after.times.cached_tokens
        yield from _span("hand over", before.times.finished, after.times.first_token, loaded_tokens=loaded, **about)
    for decode in _span("decode", lifetime.first_token, lifetime.last_token, tokens=lifetime.completion_tokens):
        for run in runs[-1:]:
            decode.attributes["headrace.engine"] = run.engine
        decode.children += [part for run in runs for part in _preemptions(run.trail)]
        yield decode


def _waits(trail: Trail, until: float) -> Iterator[SpanPlan]:
    for wait in trail.waits:
        if wait.until <= until:  # those after a preemption belong to that
            about: dict[str, Attribute] = {
                "behind": wait.behind,
                "lacking_blocks": wait.lacking,
                "running": wait.running,
            }
            yield from _span(f"wait for {wait.cause.value}", wait.since, wait.until, **about)


def _prompt(trail: Trail) -> Iterator[SpanPlan]:
    for load in trail.loads:
        yield from _span("load", load.since, load.until, blocks=load.blocks, tiers=load.tiers, whole=load.whole)
    for chunk in trail.chunks:
        about = {"step": chunk.step, "position": chunk.start, "tokens": chunk.tokens, "step_tokens": chunk.step_tokens}
        yield from _span("chunk", _began(chunk), chunk.ended, step_seconds=chunk.step_seconds, **about)


def _began(chunk: PromptChunk) -> float:
    """When its step began: it is planned while the one before runs."""
    return chunk.planned if chunk.ended is None else max(chunk.planned, chunk.ended - chunk.step_seconds)


def _preemptions(trail: Trail) -> Iterator[SpanPlan]:
    for taken in trail.preemptions:
        yield from _span("preempted", taken.at, taken.resumed, by=taken.by, lost_tokens=taken.lost, saved=taken.saved)
