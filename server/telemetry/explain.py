"""What happened to a request, in sentences: where its time went, whom it waited for, what of its prompt was found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from scheduler.types.messages import FinishReason
from scheduler.types.trail import PromptChunk, Trail, Wait, WaitCause
from server.telemetry.black_box import TOKEN_BYTES, NotedRequest, NotedSequence
from server.telemetry.lifetime import EngineRun, Lifetime
from server.telemetry.misses import Miss, MissCause

_SHOWN = 48  # characters of a text
_NAME = 8  # characters, of the 32 that are drawn for a request's id
_SHORT = 0.0005  # seconds: less is not worth a sentence

TextOf = Callable[[bytes], str]  # of packed tokens


def seconds(value: float) -> str:
    """A duration for people: `12 ms`, `3.42 s`."""
    return f"{1000 * value:.0f} ms" if value < 0.9995 else f"{value:.2f} s"


def count(number: int, noun: str) -> str:
    """`1 token`, `1,200 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def request_of(sequence_id: str) -> str:
    """Id of the request to which a sequence belongs, so that it can be asked for."""
    return sequence_id.rpartition("-")[0] or sequence_id


def shortened_id(request_id: str) -> str:
    """As much of a request's id as tells it from others, and too little to ask for it."""
    kind, dash, rest = request_id.partition("-")
    return f"{kind}{dash}{rest[:_NAME]}"


@dataclass(frozen=True, slots=True)
class Reader:
    """What those who ask are told.

    Attributes:
        text_of: makes text of tokens; None: no text is shown.
        whole_ids: whether they may know other requests by their ids: where no keys are required, whoever knows one may read that
            request's resumable stream.
    """

    text_of: TextOf | None = None
    whole_ids: bool = True

    def name(self, request_id: str) -> str:
        """What a request is called."""
        return request_id if self.whole_ids else shortened_id(request_id)

    def owner(self, sequence_id: str) -> str:
        """What the request of a sequence is called."""
        return self.name(request_of(sequence_id))


def request_sentences(record: NotedRequest, misses: Sequence[Miss | None], reader: Reader) -> list[str]:
    """All that is known of a request.

    Args:
        record: the request.
        misses: of each of its sequences.
        reader: whom they are for.
    """
    several = len(record.sequences) > 1
    told: dict[str, list[int]] = {}
    for index, (sequence, miss) in enumerate(zip(record.sequences, misses, strict=True)):
        for sentence in _sequence_sentences(sequence, miss, reader):
            told.setdefault(sentence, []).append(index)
    if not several:
        return list(told)
    ordered = sorted(told.items(), key=lambda item: item[1][0])
    return [f"{_choices(indices, len(record.sequences))}{sentence}" for sentence, indices in ordered]


def _choices(indices: Sequence[int], of: int) -> str:
    if len(indices) == of:
        return ""
    return f"Choice {indices[0]}: " if len(indices) == 1 else f"Choices {', '.join(map(str, indices))}: "


def _sequence_sentences(sequence: NotedSequence, miss: Miss | None, reader: Reader) -> Iterator[str]:
    lifetime = sequence.lifetime
    yield from _times(lifetime)
    for run in lifetime.runs:
        where = f"In {run.engine}: " if len({each.engine for each in lifetime.runs}) > 1 else ""
        yield from (where + sentence for sentence in _engine_sentences(run, reader))
    if len(lifetime.runs) > 1:
        yield from _moves(lifetime)
    if lifetime.replays:
        yield f"{count(lifetime.replays, 'engine')} that had it ended before it did, and another went on with it."
    if lifetime.scheduled is not None:
        yield from _cache(sequence, miss, reader)


# --- where the time went ---


def _times(lifetime: Lifetime) -> Iterator[str]:
    parts = lifetime.timings()
    queue, prefill, decode, total = (parts[f"{name}_ms"] / 1000 for name in ("queue", "prefill", "decode", "total"))
    if lifetime.scheduled is None and lifetime.finished is None:
        yield "It waits for an engine, or in the engine's queue."
        return
    tokens = count(lifetime.completion_tokens, "token")
    if lifetime.finished is None:
        yield f"It is still open: {seconds(queue)} until it was scheduled, and {tokens} so far."
        return
    how = _ENDS.get(lifetime.reason or FinishReason.ERROR, "It ended")
    spent = (
        f"{seconds(queue)} until it was scheduled, {seconds(prefill)} for its prompt, {seconds(decode)} for {tokens}"
    )
    yield f"{how} after {seconds(total)}: {spent}."


_ENDS = {
    FinishReason.STOP: "It was complete",
    FinishReason.LENGTH: "It was complete (the limit of its tokens)",
    FinishReason.ABORT: "It was aborted",
    FinishReason.ERROR: "It failed",
}


def _engine_sentences(run: EngineRun, reader: Reader) -> Iterator[str]:
    trail = run.trail
    yield from _waits(trail, run.times.scheduled - run.times.queued, reader)
    for load in trail.loads:
        if load.until is None:
            continue
        lost = "" if load.whole else "; some of it was damaged or gone, and was computed instead"
        took = seconds(load.until - load.since)
        yield f"It waited {took} for {count(load.blocks, 'KV block')} from the tier {' and '.join(load.tiers)}{lost}."
    if trail.chunks:
        yield _prompt(trail.chunks, trail.more_chunks)
    yield from _preemptions(trail, reader)


def _waits(trail: Trail, queued: float, reader: Reader) -> Iterator[str]:
    ordered = sorted(trail.waits, key=lambda wait: (wait.cause, wait.behind))
    grouped = [list(group) for _, group in groupby(ordered, key=lambda wait: (wait.cause, wait.behind))]
    waits = [(sum(wait.until - wait.since for wait in group), group) for group in grouped]
    for spent, group in sorted(waits, key=lambda pair: -pair[0])[:5]:
        if spent >= _SHORT:
            yield f"It waited {seconds(spent)} {_why(group, reader)}."
    if not trail.waits and queued >= _SHORT:
        yield f"It was in the engine's queue for {seconds(queued)}: until the next step was planned."


def _why(group: Sequence[Wait], reader: Reader) -> str:
    first, behind = group[0], reader.owner(group[0].behind)
    if first.cause is WaitCause.BLOCKS:
        lacking = max(wait.lacking for wait in group)
        verb = "was" if lacking == 1 else "were"
        missing = f"{count(lacking, 'KV block')} {verb} missing" if lacking else "KV blocks were missing"
        who = f"for {behind}, which stood before it in the queue" if behind else "for its prompt"
        held = f"; most were held by {', '.join(map(reader.owner, first.holders))}" if first.holders else ""
        return f"because {missing} {who}{held}"
    if first.cause is WaitCause.PLACES:
        return f"because {count(first.running, 'request')} ran, as many as a step may have (max_running)"
    if first.cause is WaitCause.PREFIX:
        return f"for {behind or 'another request'}, which was computing a prefix that both share"
    return _OTHER_WAITS[first.cause]


_OTHER_WAITS = {
    WaitCause.TOKENS: "because requests that ran took all tokens of the steps (max_step_tokens)",
    WaitCause.HAND_OVER: "for KV that another engine was still saving",
    WaitCause.DRAFTS: "for its drafts to be verified",
}


def _prompt(chunks: Sequence[PromptChunk], more: int) -> str:
    tokens, steps = sum(chunk.tokens for chunk in chunks), [chunk.step for chunk in chunks]
    ended = [chunk for chunk in chunks if chunk.ended is not None]
    where = f"in step {steps[0]}" if len(steps) == 1 else f"in {len(steps)} chunks, in steps {steps[0]} to {steps[-1]}"
    spent, all_tokens = sum(chunk.step_seconds for chunk in ended), sum(chunk.step_tokens for chunk in ended)
    others = all_tokens - sum(chunk.tokens for chunk in ended)
    beside = f", beside {count(others, 'token')} of other requests" if others > 0 else ""
    rest = f"; {count(more, 'chunk')} after these" if more else ""
    verb = "was" if tokens == 1 else "were"
    return f"{count(tokens, 'token')} {verb} computed {where}, which took {seconds(spent)}{beside}{rest}."


def _preemptions(trail: Trail, reader: Reader) -> Iterator[str]:
    for each in trail.preemptions[:5]:
        what = f"its blocks ({count(each.lost, 'computed token')}), which were {'saved' if each.saved else 'given up'}"
        after = "" if each.resumed is None else f"; {seconds(each.resumed - each.at)} later it went on"
        yield f"It was preempted for {reader.owner(each.by)} and lost {what}{after}."
    if (more := len(trail.preemptions) - 5) > 0:
        yield f"It was preempted {count(more, 'more time')}."


def _moves(lifetime: Lifetime) -> Iterator[str]:
    for before, after in zip(lifetime.runs, lifetime.runs[1:], strict=False):
        ended, first = before.times.finished, after.times.first_token
        if ended is not None and first is not None:
            took = seconds(max(0.0, first - ended))
            loaded = f"{count(after.times.cached_tokens, 'token')} of its KV were found there"
            yield f"{before.engine} handed it over to {after.engine}, which brought its next token {took} later; {loaded}."


# --- what was found of its prompt ---


def _cache(sequence: NotedSequence, miss: Miss | None, reader: Reader) -> Iterator[str]:
    prompt, cached = len(sequence.prompt) // TOKEN_BYTES, sequence.lifetime.cached_tokens
    if cached:
        yield f"Of its prompt of {count(prompt, 'token')}, {cached:,} were found in the KV cache."
    else:
        yield f"Nothing of its prompt of {count(prompt, 'token')} was found in the KV cache."
    if miss is not None:
        yield miss_sentence(sequence, miss, reader)


def miss_sentence(sequence: NotedSequence, miss: Miss, reader: Reader) -> str:
    """Why part of a prompt was not found."""
    nearest = miss.nearest
    if nearest is None:
        return _WITHOUT_NEAREST[miss.cause]
    ago = sequence.lifetime.received - nearest.sequence.lifetime.received
    other = f"{reader.name(nearest.record.id)}, sent {seconds(ago)} before"
    common, lost = count(nearest.common, "token"), count(miss.lost, "token")
    if miss.cause is MissCause.LONGER:
        return f"What follows is new: it shares its first {common} with the nearest known request, {other}."
    if miss.cause is not MissCause.DIFFERS:
        return f"It shares its first {common} with {other}, {_LOSSES[miss.cause]}: {lost} lost."
    texts = ""
    if reader.text_of is not None:
        here, there = map(reader.text_of, nearest.continuations(sequence.prompt))
        texts = f": here it goes on with {shortened(here)}, there with {shortened(there)}"
    cost = f" Up to {lost} could have been found without that." if miss.lost else ""
    return f"It shares its first {common} with {other}; token {nearest.common} differs{texts}.{cost}"


_LOSSES = {
    MissCause.SALTED: "but was sent with another cache_salt or key, which keeps them apart",
    MissCause.ELSEWHERE: "which another engine had computed",
    MissCause.EVICTED: "but the KV of these was evicted to make room",
    MissCause.GONE: "but the KV of these was no longer there",
}
_WITHOUT_NEAREST = {
    MissCause.OFF: "Prefixes are not cached on this server (--no-prefix-caching).",
    MissCause.SCORED: "It asked for something of each token of its prompt, so all of it had to be computed.",
    MissCause.FIRST: "No earlier request that is remembered begins like it.",
}


def shortened(text: str) -> str:
    """The beginning of a text in quotation marks, on one line."""
    plain = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return f"“{plain}”" if len(plain) <= _SHOWN else f"“{plain[:_SHOWN]}…”"
