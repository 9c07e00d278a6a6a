"""Text answers from deltas: the chunks of a stream, and the one JSON object, which is the same deltas added up.

The grammar of a stream is in `docs/sse.md`. What belongs here: shapes of JSON. Never: waiting, sending.
"""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from server.api.answers.logprobs import by_id, prompt_objects
from server.errors import ApiError
from server.schema.sampling import Sampling
from server.stream.generation import Delta, Generation, TextChoice
from server.stream.job import TextJob, TokenizedPrompt
from server.stream.sse import error_event
from server.text.tokenizer import Tokenizer

S = TypeVar("S", bound=Sampling)

JsonObject = dict[str, Any]

# Of a text that is not read as a message, for which nothing was predicted.
_NO_DETAILS = {"reasoning_tokens": 0, "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class AnswerFormat(ABC, Generic[S]):
    """How one endpoint writes a choice. Subclasses stand beside their endpoints and define what differs."""

    chunk_object: ClassVar[str]
    answer_object: ClassVar[str]

    def __init__(self, job: TextJob[S], tokenizer: Tokenizer) -> None:
        self.job = job
        self.tokenizer = tokenizer
        self.spell = by_id if job.body.return_tokens_as_token_ids else tokenizer.token_text

    @abstractmethod
    def opening(self, delta: Delta) -> Iterator[JsonObject]:
        """The chunks that stand before the first token of a choice."""

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[JsonObject]:
        """The chunks for what the delta gained. If it ends the choice, the last of them says so."""

    @abstractmethod
    def whole(self, delta: Delta) -> JsonObject:
        """A choice of the non-streamed answer."""

    def choices(self, deltas: list[Delta]) -> list[JsonObject]:
        """All choices of the non-streamed answer, of which each was added up."""
        return [self.whole(delta) for delta in deltas]

    def extras(self, delta: Delta) -> JsonObject:
        """What the first chunk of a choice, or the whole choice, says about its prompt."""
        body = self.job.body
        extras: JsonObject = {}
        if body.return_token_ids:
            extras["prompt_token_ids"] = self.prompt(delta).ids
        if body.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_objects(delta.prompt_logprobs, body.prompt_logprobs, self.tokenizer)
        return extras

    def token_ids(self, delta: Delta) -> JsonObject:
        """The ids of the delta's tokens, where asked for."""
        return {"token_ids": delta.token_ids} if self.job.body.return_token_ids else {}

    def prompt(self, delta: Delta) -> TokenizedPrompt:
        """What the delta's choice started from."""
        return self.job.sequences[delta.index].prompt


class ChunkWriter:
    """The events of one stream, in one order for all formats. The part that is the same in every chunk is encoded once."""

    def __init__(self, generation: Generation, answer: AnswerFormat[Any], fingerprint: str) -> None:
        job, options = generation.job, generation.job.body.stream_options
        head = _head(job, answer.chunk_object, fingerprint)
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._answer = answer
        self._generation = generation
        self._usage = options is not None and options.include_usage
        self._continuous = options is not None and options.continuous_usage_stats
        self._open = len(generation.choices)
        self._extras: dict[int, JsonObject] = {}  # by choice, until its first chunk
        self._counted = dict.fromkeys(range(self._open), 0)  # by choice: tokens of the chunks so far
        plain = self._open == 1 and generation.choices[0].plain is not None
        self.around_text: Callable[[], tuple[bytes, bytes]] | None = (
            self._around_text if plain and not self._continuous else None
        )

    def write(self, deltas: Iterable[Delta]) -> bytes:
        """The events of one step, for one write; may be empty."""
        return b"".join(self.events(deltas))

    def events(self, deltas: Iterable[Delta]) -> list[bytes]:
        """The events of one step; there may be none."""
        return [event for delta in deltas for event in self._events(delta)]

    def _around_text(self) -> tuple[bytes, bytes]:
        """What stands before and behind the text in the event of a text alone, as `write` has it: it is the same each time."""
        mark = secrets.token_hex(8)
        event = b"".join(map(self._event, self._answer.chunks(Delta(index=0, text=mark))))
        before, after = event.split(_encode(mark))
        return before, after

    def end(self) -> bytes:
        """What follows the last choice's finish chunk."""
        return b"".join(self.last_events())

    def failed(self, error: ApiError) -> bytes:
        """What ends the stream where something went wrong."""
        return error_event(error)

    def last_events(self) -> list[bytes]:
        """The events that follow the last choice's finish chunk."""
        if not self._usage:
            return [DONE]
        return [self._head + b'],"usage":' + _encode(usage(self._generation)) + b"}\n\n", DONE]

    def _events(self, delta: Delta) -> Iterator[bytes]:
        if delta.first:
            self._extras[delta.index] = self._answer.extras(delta)
            for choice in self._answer.opening(delta):
                yield self._event(choice)
        self._counted[delta.index] = delta.counted
        for choice in self._answer.chunks(delta):
            yield self._event(choice)

    def _event(self, choice: JsonObject) -> bytes:
        if self._extras:
            choice |= self._extras.pop(choice["index"], {})
        parts = [self._head, _encode(choice), b"]"]
        if self._usage:
            so_far = _encode(usage(self._generation, sum(self._counted.values()))) if self._continuous else b"null"
            parts += [b',"usage":', so_far]
        if choice["finish_reason"] is not None:
            self._open -= 1
            if self._open == 0:
                parts += [b',"timings":', _encode(timings_of(self._generation))]
        parts.append(b"}\n\n")
        return b"".join(parts)


def answer_body(generation: Generation, answer: AnswerFormat[Any], deltas: Iterable[Delta], fingerprint: str) -> bytes:
    """The non-streamed answer: all deltas of the stream, added up."""
    of_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        of_choice.setdefault(delta.index, []).append(delta)
    body = _head(generation.job, answer.answer_object, fingerprint)
    body["choices"] = answer.choices([Delta.joined(of_choice[index]) for index in sorted(of_choice)])
    body["usage"] = usage(generation)
    body["timings"] = timings_of(generation)
    return _encode(body)


def usage(generation: Generation, completion: int | None = None) -> JsonObject:
    """Tokens so far; `completion` instead of all that were generated. A prompt counts once for all its choices, with the cached
    tokens that its first choice reused.
    """
    first_choices = generation.choices[:: generation.job.body.candidates]
    prompt = sum(choice.lifetime.prompt_tokens for choice in first_choices)
    if completion is None:
        completion = sum(choice.lifetime.completion_tokens for choice in generation.choices)
    counts: JsonObject = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(choice.lifetime.cached_tokens for choice in first_choices)},
        "completion_tokens_details": _details(generation),
    }
    return counts


def _details(generation: Generation) -> dict[str, int]:
    form, details = generation.job.form, _NO_DETAILS
    if form is not None and form.reasoning is not None:
        details = details | {"reasoning_tokens": sum(choice.reasoning_tokens for choice in generation.choices)}
    if any(sequence.request.sampling.prediction_ids for sequence in generation.job.sequences):
        lifetimes = [choice.lifetime for choice in generation.choices]
        details = details | {
            "accepted_prediction_tokens": sum(each.drafts_accepted for each in lifetimes),
            "rejected_prediction_tokens": sum(each.drafts_rejected for each in lifetimes),
        }
    return details


def timings_of(generation: Generation) -> dict[str, float]:
    """The times of the choice that finished last."""
    slowest: TextChoice = max(generation.choices, key=lambda choice: choice.lifetime.finished or 0.0)
    return slowest.lifetime.timings()


def _head(job: TextJob[Any], kind: str, fingerprint: str) -> JsonObject:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "system_fingerprint": fingerprint,
    }
