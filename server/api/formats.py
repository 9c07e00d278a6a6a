"""Answers from deltas: the chunks of a stream, and the one JSON object, which is the same deltas added up.

The grammar of a stream stands in `docs/sse.md`. What belongs here: shapes of JSON. Never: waiting, sending.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import msgspec

from server.api.logprobs import chat_entries, completion_lists, prompt_objects
from server.api.validate import Job, Prompt
from server.errors import ApiError
from server.schema.chat import ChatRequest
from server.schema.completions import CompletionRequest
from server.stream.generation import Choice, Delta, Generation
from server.text.detokenizer import Detokenizer
from server.text.tokenizer import Tokenizer

JsonObject = dict[str, Any]

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class AnswerFormat(ABC):
    """How one route spells a choice. Subclasses say what differs between chat and completions."""

    chunk_object: ClassVar[str]
    answer_object: ClassVar[str]

    def __init__(self, job: Job, tokenizer: Tokenizer) -> None:
        self.job = job
        self.tokenizer = tokenizer

    @abstractmethod
    def content(self, delta: Delta) -> Iterator[JsonObject]:
        """The chunks that bring what the delta gained, without its end."""

    @abstractmethod
    def finish(self, delta: Delta) -> JsonObject:
        """The chunk that ends a choice."""

    @abstractmethod
    def whole(self, delta: Delta) -> JsonObject:
        """A choice of the non-streamed answer."""

    def extras(self, delta: Delta) -> JsonObject:
        """What the first chunk of a choice, whichever that is, or the whole choice says about its prompt."""
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

    def prompt(self, delta: Delta) -> Prompt:
        """What the delta's choice started from."""
        return self.job.sequences[delta.index].prompt


class ChatFormat(AnswerFormat):
    """`/v1/chat/completions`."""

    chunk_object = "chat.completion.chunk"
    answer_object = "chat.completion"

    def __init__(self, job: Job, body: ChatRequest, tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._most = (body.top_logprobs or 0) if body.logprobs else None

    def content(self, delta: Delta) -> Iterator[JsonObject]:
        """A role chunk at first, then text."""
        if delta.first:
            role = {"role": "assistant", "content": ""}
            yield {"index": delta.index, "delta": role, "logprobs": None, "finish_reason": None}
        ids, logprobs = self.token_ids(delta), self._logprobs(delta)
        if delta.text or (delta.token_ids and (ids or logprobs)):
            content = {"content": delta.text}
            yield {"index": delta.index, "delta": content, "logprobs": logprobs, "finish_reason": None, **ids}

    def finish(self, delta: Delta) -> JsonObject:
        """An empty delta and the reasons."""
        return {
            "index": delta.index,
            "delta": {},
            "logprobs": None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def whole(self, delta: Delta) -> JsonObject:
        """The message."""
        return {
            "index": delta.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(delta),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **self.token_ids(delta),
            **self.extras(delta),
        }

    def _logprobs(self, delta: Delta) -> JsonObject | None:
        return None if self._most is None else chat_entries(delta.logprobs, self._most, self.tokenizer)


class CompletionFormat(AnswerFormat):
    """`/v1/completions`, with the prompt in front where `echo` asks for it."""

    chunk_object = "text_completion"
    answer_object = "text_completion"

    def __init__(self, job: Job, body: CompletionRequest, tokenizer: Tokenizer) -> None:
        super().__init__(job, tokenizer)
        self._echo = body.echo
        self._most = body.logprobs
        self._skip_special = body.skip_special_tokens
        self._echoes: dict[int, tuple[str, list[int]]] = {}  # by prompt; choices of one prompt share it

    def content(self, delta: Delta) -> Iterator[JsonObject]:
        """The prompt at first, then text."""
        if delta.first and self._echo:
            text, logprobs = self._echo_of(delta)
            if text or logprobs:
                yield {"index": delta.index, "text": text, "logprobs": logprobs, "finish_reason": None}
        ids, logprobs = self.token_ids(delta), self._logprobs(delta)
        if delta.text or (delta.token_ids and (ids or logprobs)):
            yield {"index": delta.index, "text": delta.text, "logprobs": logprobs, "finish_reason": None, **ids}

    def finish(self, delta: Delta) -> JsonObject:
        """No text, and the reasons."""
        return {
            "index": delta.index,
            "text": "",
            "logprobs": None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }

    def whole(self, delta: Delta) -> JsonObject:
        """The text."""
        text, logprobs = self._echo_of(delta) if self._echo else ("", None)
        generated = self._logprobs(delta)
        if logprobs is not None and generated is not None:
            generated = {key: logprobs[key] + generated[key] for key in logprobs}
        return {
            "index": delta.index,
            "text": text + delta.text,
            "logprobs": generated,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
            **self.token_ids(delta),
            **self.extras(delta),
        }

    def _echo_of(self, delta: Delta) -> tuple[str, JsonObject | None]:
        text, offsets = self._echo_text(self.prompt(delta))
        if self._most is None:
            return text, None
        ids = self.prompt(delta).ids
        entries = [None, *delta.prompt_logprobs]
        return text, completion_lists(entries, ids, offsets, self._most, self.tokenizer)

    def _logprobs(self, delta: Delta) -> JsonObject | None:
        if self._most is None:
            return None
        begin = len(self._echo_text(self.prompt(delta))[0]) if self._echo else 0
        offsets = [begin + offset for offset in delta.offsets]
        return completion_lists(delta.logprobs, delta.token_ids, offsets, self._most, self.tokenizer)

    def _echo_text(self, prompt: Prompt) -> tuple[str, list[int]]:
        key = id(prompt)
        if key not in self._echoes:
            self._echoes[key] = echo_text(prompt, self._skip_special, self.tokenizer)
        return self._echoes[key]


def echo_text(prompt: Prompt, skip_special_tokens: bool, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    """The prompt as text, and the character each of its tokens begins at.

    A text is echoed as the client wrote it; what tokenizing added in front has no characters of it.
    """
    decoded, offsets = _decoded(prompt, skip_special_tokens, tokenizer)
    if prompt.text is None or prompt.text == decoded:
        return decoded, offsets
    with_special, its_offsets = _decoded(prompt, False, tokenizer)
    added = len(with_special) - len(prompt.text)
    if added >= 0 and with_special.endswith(prompt.text):
        return prompt.text, [max(0, offset - added) for offset in its_offsets]
    return prompt.text, [min(offset, len(prompt.text)) for offset in offsets]  # the tokenizer normalizes text


def _decoded(prompt: Prompt, skip_special_tokens: bool, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip_special_tokens, continues=False)
    text = detokenizer.push(prompt.ids) + detokenizer.finish()
    return text, detokenizer.offsets


def format_of(job: Job, tokenizer: Tokenizer) -> ChatFormat | CompletionFormat:
    """The format of the route that the job came by."""
    if isinstance(job.body, ChatRequest):
        return ChatFormat(job, job.body, tokenizer)
    return CompletionFormat(job, job.body, tokenizer)


class ChunkWriter:
    """The events of one stream. The part of a chunk that never changes is encoded once."""

    def __init__(self, generation: Generation, answer: AnswerFormat, fingerprint: str) -> None:
        job, options = generation.job, generation.job.body.stream_options
        head = _head(job, answer.chunk_object, fingerprint)
        self._head = b"data: " + _encode(head)[:-1] + b',"choices":['
        self._answer = answer
        self._generation = generation
        self._usage = options is not None and options.include_usage
        self._continuous = options is not None and options.continuous_usage_stats
        self._open = len(generation.choices)
        self._extras: dict[int, JsonObject] = {}  # by choice, until its first chunk

    def write(self, deltas: Iterable[Delta]) -> bytes:
        """The events of one step, for one write; may be empty."""
        return b"".join([event for delta in deltas for event in self._events(delta)])

    def end(self) -> bytes:
        """What follows the last choice's finish chunk."""
        if not self._usage:
            return DONE
        return self._head + b'],"usage":' + _encode(usage(self._generation)) + b"}\n\n" + DONE

    def _events(self, delta: Delta) -> Iterator[bytes]:
        if delta.first:
            self._extras[delta.index] = self._answer.extras(delta)
        for choice in self._answer.content(delta):
            yield self._event(choice)
        if delta.finish_reason is not None:
            self._open -= 1
            yield self._event(self._answer.finish(delta), timings=self._open == 0)

    def _event(self, choice: JsonObject, timings: bool = False) -> bytes:
        if self._extras:
            choice |= self._extras.pop(choice["index"], {})
        parts = [self._head, _encode(choice), b"]"]
        if self._usage:
            parts += [b',"usage":', _encode(usage(self._generation)) if self._continuous else b"null"]
        if timings:
            parts += [b',"timings":', _encode(timings_of(self._generation))]
        parts.append(b"}\n\n")
        return b"".join(parts)


def error_event(error: ApiError) -> bytes:
    """The event that ends a stream in which something went wrong."""
    return b"data: " + _encode(error.body()) + b"\n\n"


def answer_body(generation: Generation, answer: AnswerFormat, deltas: Iterable[Delta], fingerprint: str) -> bytes:
    """The non-streamed answer: all deltas of the stream, added up."""
    of_choice: dict[int, list[Delta]] = {}
    for delta in deltas:
        of_choice.setdefault(delta.index, []).append(delta)
    body = _head(generation.job, answer.answer_object, fingerprint)
    body["choices"] = [answer.whole(Delta.joined(of_choice[index])) for index in sorted(of_choice)]
    body["usage"] = usage(generation)
    body["timings"] = timings_of(generation)
    return _encode(body)


def usage(generation: Generation) -> JsonObject:
    """Tokens so far. A prompt counts once, however many choices go on from it; cached are those its first choice reused."""
    first_choices = generation.choices[:: generation.job.body.n]
    prompt = sum(choice.lifetime.prompt_tokens for choice in first_choices)
    completion = sum(choice.lifetime.completion_tokens for choice in generation.choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(choice.lifetime.cached_tokens for choice in first_choices)},
    }


def timings_of(generation: Generation) -> dict[str, float]:
    """The times of the choice that finished last."""
    slowest: Choice = max(generation.choices, key=lambda choice: choice.lifetime.finished or 0.0)
    return slowest.lifetime.timings()


def _head(job: Job, kind: str, fingerprint: str) -> JsonObject:
    return {
        "id": job.id,
        "object": kind,
        "created": job.created,
        "model": job.model,
        "system_fingerprint": fingerprint,
    }
