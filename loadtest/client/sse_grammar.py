"""Checks a streamed answer against the grammar of `docs/sse.md`, event by event.

Tests run every stream through it, and so does the load tester with every stream it measures: a server that is fast because it
drops its finish chunk does not pass.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from scheduler.types.messages import FinishReason

Kind = Literal["chat", "completion"]

_KINDS: dict[str, Kind] = {"chat.completion.chunk": "chat", "text_completion": "completion"}
# Any other reason ends a stream with an error event.
_FINISH_REASONS = frozenset((FinishReason.STOP.value, FinishReason.LENGTH.value))
_SHARED = ("id", "object", "created", "model")
_CHUNK_KEYS = frozenset((*_SHARED, "choices", "usage", "timings", "system_fingerprint", "service_tier"))
_FIRST_CHUNK_KEYS = frozenset(("prompt_token_ids", "prompt_logprobs"))
_CHOICE_KEYS = frozenset(("index", "finish_reason", "stop_reason", "logprobs", "token_ids")) | _FIRST_CHUNK_KEYS
_COMPLETION_LOGPROBS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
_ERROR_KEYS = frozenset(("message", "type", "param", "code"))


class GrammarError(ValueError):
    """A stream broke the grammar. `event` is the number of the offending event, from 0; comments count."""

    def __init__(self, event: int, rule: str) -> None:
        super().__init__(f"event {event}: {rule}")
        self.event = event
        self.rule = rule


@dataclass(slots=True)
class ChoiceSummary:
    """What one choice of the stream said."""

    text: str = ""
    role: str | None = None  # chat only
    finish_reason: str | None = None  # None only if an error ended the stream
    logprob_tokens: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    chunks: int = 0  # with text, logprobs or token ids


@dataclass(slots=True)
class StreamSummary:
    """What a valid stream said as a whole."""

    kind: Kind | None = None  # None if the stream is a single error
    id: str | None = None
    model: str | None = None
    choices: dict[int, ChoiceSummary] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    chunks: int = 0  # JSON events, the error included
    comments: int = 0
    last_id: int = 0  # of the events; 0 if they have none

    @property
    def text(self) -> str:
        """The text of choice 0."""
        return self.choices[0].text if 0 in self.choices else ""


class EventSplitter:
    """Cuts bytes into events as they come from the network; each event keeps its blank line."""

    def __init__(self) -> None:
        self._rest = b""

    def push(self, data: bytes) -> list[bytes]:
        """Add `data`; returns the events that are now complete."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        return [event + b"\n\n" for event in events]

    @property
    def rest(self) -> bytes:
        """Bytes not yet ended by a blank line; a stream must end with none."""
        return self._rest


class StreamValidator:
    """Checks one stream, an event at a time.

    Args:
        kind: what the stream must be; None accepts either.
        choices: how many choices the request asked for (`n` times the number of prompts).
        include_usage: whether the request asked for the usage chunk.
        continuous_usage: whether it asked for usage in every chunk.
        require_timings: whether the last finish chunk must have `timings`, which other servers do not send.
    """

    def __init__(
        self,
        *,
        kind: Kind | None = None,
        choices: int = 1,
        include_usage: bool = False,
        continuous_usage: bool = False,
        require_timings: bool = True,
    ) -> None:
        self._summary = StreamSummary()
        self._kind = kind
        self._choices = choices
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._require_timings = require_timings
        self._event = -1
        self._ended = False
        self._shared: dict[str, Any] | None = None
        self._last_offset: dict[int, int] = {}
        self._completion_tokens = 0

    def feed(self, event: str | bytes) -> None:
        """Take the next event, its blank line included. Raises GrammarError."""
        self._event += 1
        if isinstance(event, bytes):
            try:
                event = event.decode()
            except UnicodeDecodeError:
                self._fail("an event is UTF-8")
        self._check(not self._ended, "nothing follows the terminal event")
        self._check(event.endswith("\n\n"), "an event ends with a blank line")
        lines = event[:-2].split("\n")
        if all(line.startswith(":") for line in lines):
            self._summary.comments += 1
            return
        numbered = self._id(lines)
        self._check(len(lines) == 1 and lines[0].startswith("data: "), "an event is one line `data: ` or a comment")
        payload = lines[0].removeprefix("data: ")
        if payload == "[DONE]":
            self._done()
        else:
            self._json_event(self._parse(payload))
        # What ends a connection, and not its stream, is no event of the stream.
        self._check(
            numbered == (self._summary.last_id > 0) or self._summary.error is not None, "all events have ids or none"
        )

    def finish(self) -> StreamSummary:
        """The stream has ended: what it said. Raises GrammarError unless a terminal event ended it."""
        if not self._ended:
            raise GrammarError(self._event + 1, "the stream ends without [DONE] or an error")
        return self._summary

    def _id(self, lines: list[str]) -> bool:
        """Take an event's id out of its lines; whether it has one."""
        if not lines[0].startswith("id: "):
            return False
        first = self._summary.last_id == 0 and self._summary.chunks == 0
        self._check(first or self._summary.last_id > 0, "all events have ids or none")
        self._summary.last_id += 1
        self._check(lines.pop(0) == f"id: {self._summary.last_id}", "ids count the events from 1")
        return True

    def _fail(self, rule: str) -> NoReturn:
        raise GrammarError(self._event, rule)

    def _check(self, holds: bool, rule: str) -> None:
        if not holds:
            self._fail(rule)

    def _count(self, value: Any, name: str) -> int:
        if not _is_count(value):
            self._fail(f"{name} is a whole number")
        return int(value)

    def _parse(self, payload: str) -> dict[str, Any]:
        try:
            value = json.loads(payload, parse_constant=lambda name: self._fail(f"{name} is not JSON"))
        except GrammarError:
            raise
        except (ValueError, RecursionError) as error:  # an integer too long or a nesting too deep to be read counts too
            self._fail(f"data is JSON or [DONE]: {error}")
        if not isinstance(value, dict):
            self._fail("data is a JSON object")
        return value

    def _done(self) -> None:
        self._check(self._all_finished(), "[DONE] comes after every choice has finished")
        self._check(
            not self._include_usage or self._summary.usage is not None, "include_usage: a usage chunk before [DONE]"
        )
        self._ended = True

    def _all_finished(self) -> bool:
        choices = self._summary.choices
        return len(choices) == self._choices and all(choice.finish_reason is not None for choice in choices.values())

    def _json_event(self, chunk: dict[str, Any]) -> None:
        self._summary.chunks += 1
        if "error" in chunk:
            self._error(chunk)
            return
        self._check(self._summary.usage is None, "only [DONE] follows the usage chunk")
        self._check(not chunk.keys() - _CHUNK_KEYS, f"unknown keys {sorted(chunk.keys() - _CHUNK_KEYS)}")
        self._head(chunk)
        choices = chunk.get("choices")
        self._check(
            isinstance(choices, list) and len(choices) <= 1, "`choices` holds one choice, or none with the usage"
        )
        assert isinstance(choices, list)
        if choices:
            self._check(not self._all_finished(), "after every choice has finished only the usage chunk may come")
            self._usage_of_a_choice(chunk)
            self._choice(choices[0])
            self._timings(chunk, last=self._all_finished())
        else:
            self._usage_chunk(chunk)

    def _error(self, chunk: dict[str, Any]) -> None:
        error = chunk["error"]
        self._check(set(chunk) == {"error"}, "an error event holds nothing but `error`")
        self._check(isinstance(error, dict) and set(error) == _ERROR_KEYS, f"`error` has exactly {sorted(_ERROR_KEYS)}")
        self._check(
            isinstance(error["message"], str) and isinstance(error["type"], str), "message and type are strings"
        )
        self._summary.error = error
        self._ended = True

    def _head(self, chunk: dict[str, Any]) -> None:
        """What all chunks share."""
        self._check(all(key in chunk for key in _SHARED), f"every chunk has {', '.join(_SHARED)}")
        shared = {key: chunk[key] for key in _SHARED}
        if self._shared is None:
            kind = _KINDS.get(str(shared["object"]))
            self._check(kind is not None and self._kind in (None, kind), "`object` names the kind of stream")
            self._check(all(isinstance(shared[key], str) and shared[key] for key in ("id", "model")), "id and model")
            self._check(_is_count(shared["created"]), "`created` is a Unix time in whole seconds")
            self._shared = shared
            self._summary.kind, self._summary.id, self._summary.model = kind, shared["id"], shared["model"]
        self._check(shared == self._shared, f"all chunks share {', '.join(_SHARED)}")

    def _usage_of_a_choice(self, chunk: dict[str, Any]) -> None:
        if not self._include_usage:
            self._check("usage" not in chunk, "no `usage` key without include_usage")
            return
        self._check("usage" in chunk, "with include_usage every chunk has `usage`")
        if self._continuous_usage:
            self._usage(chunk["usage"])
        else:
            self._check(chunk["usage"] is None, "`usage` is null before the usage chunk")

    def _usage_chunk(self, chunk: dict[str, Any]) -> None:
        self._check(self._include_usage, "a usage chunk only with include_usage")
        self._check(self._all_finished(), "the usage chunk comes after every choice has finished")
        self._timings(chunk, last=False)
        self._summary.usage = self._usage(chunk.get("usage"))

    def _usage(self, usage: Any) -> dict[str, Any]:
        if not isinstance(usage, dict):
            self._fail("`usage` is an object")
        prompt, completion, total = (
            self._count(usage.get(key), key) for key in ("prompt_tokens", "completion_tokens", "total_tokens")
        )
        self._check(prompt + completion == total, "total_tokens is the sum of prompt_tokens and completion_tokens")
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            cached = self._count(details.get("cached_tokens", 0), "cached_tokens")
            self._check(cached <= prompt, "cached_tokens is at most prompt_tokens")
        self._check(completion >= self._completion_tokens, "completion_tokens never shrinks")
        self._completion_tokens = completion
        return usage

    def _timings(self, chunk: dict[str, Any], last: bool) -> None:
        if not last:
            self._check("timings" not in chunk, "only the last finish chunk has `timings`")
        elif "timings" in chunk or self._require_timings:
            timings = chunk.get("timings")
            self._check(isinstance(timings, dict) and bool(timings), "the last finish chunk has a `timings` object")
            self._summary.timings = timings

    def _choice(self, choice: Any) -> None:
        if not isinstance(choice, dict):
            self._fail("a choice is an object")
        content_key = "delta" if self._summary.kind == "chat" else "text"
        unknown = choice.keys() - _CHOICE_KEYS - {content_key}
        self._check(not unknown, f"unknown keys {sorted(unknown)} in a choice")
        self._check(
            {"index", "finish_reason", content_key} <= choice.keys(),
            f"a choice has index, finish_reason, {content_key}",
        )
        index = choice["index"]
        self._check(_is_count(index) and index < self._choices, f"`index` is a whole number below {self._choices}")
        first = index not in self._summary.choices
        known = self._summary.choices.setdefault(index, ChoiceSummary())
        self._check(known.finish_reason is None, f"choice {index} has finished already")
        self._check(
            first or not choice.keys() & _FIRST_CHUNK_KEYS, "prompt_token_ids and prompt_logprobs: first chunk only"
        )
        if self._summary.kind == "chat":
            self._delta(choice, known, first)
        else:
            self._text(choice, known, choice["text"])

    def _delta(self, choice: dict[str, Any], known: ChoiceSummary, first: bool) -> None:
        delta = choice["delta"]
        if first:
            self._check(delta == {"role": "assistant", "content": ""}, "a chat choice begins with the role chunk")
            self._check(choice["finish_reason"] is None and not _carries(choice), "the role chunk carries nothing else")
            known.role = "assistant"
        elif choice["finish_reason"] is not None:
            self._check(delta == {}, "the finish chunk has an empty delta")
            self._check(not _carries(choice), "the finish chunk has no logprobs and no token ids")
            self._finish(choice, known)
        else:
            self._check(
                isinstance(delta, dict) and set(delta) == {"content"}, "the delta of a content chunk has `content`"
            )
            self._content(choice, known, delta["content"])

    def _text(self, choice: dict[str, Any], known: ChoiceSummary, text: Any) -> None:
        if choice["finish_reason"] is None:
            self._content(choice, known, text)
        else:
            if text != "" or _carries(choice):
                self._content(choice, known, text)
            self._finish(choice, known)

    def _finish(self, choice: dict[str, Any], known: ChoiceSummary) -> None:
        reason = choice["finish_reason"]
        self._check(
            isinstance(reason, str) and reason in _FINISH_REASONS, f"finish_reason is one of {sorted(_FINISH_REASONS)}"
        )
        known.finish_reason = reason

    def _content(self, choice: dict[str, Any], known: ChoiceSummary, text: Any) -> None:
        self._check(isinstance(text, str), "text is a string")
        self._check(text != "" or _carries(choice), "a content chunk without text carries logprobs or token ids")
        ended = choice["finish_reason"] is not None
        self._check(ended or choice.get("stop_reason") is None, "stop_reason stands in the finish chunk")
        self._logprobs(choice, known)
        token_ids = choice.get("token_ids") or []
        self._check(
            isinstance(token_ids, list) and all(map(_is_count, token_ids)), "token_ids is a list of whole numbers"
        )
        known.text += text
        known.token_ids += token_ids
        known.chunks += 1

    def _logprobs(self, choice: dict[str, Any], known: ChoiceSummary) -> None:
        logprobs = choice.get("logprobs")
        if logprobs is None:
            return
        self._check(isinstance(logprobs, dict), "`logprobs` is an object or null")
        if self._summary.kind == "chat":
            entries = logprobs.get("content")
            self._check(
                isinstance(entries, list) and all(map(_is_chat_entry, entries)), "logprobs.content lists tokens"
            )
            known.logprob_tokens += [entry["token"] for entry in entries]
            return
        lists = [logprobs.get(key) for key in _COMPLETION_LOGPROBS]
        self._check(
            all(isinstance(entries, list) and len(entries) == len(lists[0]) for entries in lists),
            f"logprobs has equally long lists {', '.join(_COMPLETION_LOGPROBS)}",
        )
        for offset in logprobs["text_offset"]:
            self._check(_is_count(offset) and offset >= self._last_offset.get(choice["index"], 0), "text_offset grows")
            self._last_offset[choice["index"]] = offset
        known.logprob_tokens += logprobs["tokens"]


def validate(
    events: Iterable[str | bytes],
    *,
    kind: Kind | None = None,
    choices: int = 1,
    include_usage: bool = False,
    continuous_usage: bool = False,
    require_timings: bool = True,
) -> StreamSummary:
    """Check a whole stream, given as its events; the options are those of `StreamValidator`. Raises GrammarError."""
    validator = StreamValidator(
        kind=kind,
        choices=choices,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        require_timings=require_timings,
    )
    for event in events:
        validator.feed(event)
    return validator.finish()


def validate_body(body: bytes, **expected: Any) -> StreamSummary:
    """Check a whole stream, given as the bytes of its body; `expected` are the options of `validate`. Raises GrammarError."""
    splitter = EventSplitter()
    events = splitter.push(body)
    return validate([*events, splitter.rest] if splitter.rest else events, **expected)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_chat_entry(entry: Any) -> bool:
    """Whether this is one token of chat log-probabilities, with valid alternatives."""
    if not isinstance(entry, dict) or not {"token", "logprob", "bytes", "top_logprobs"} <= entry.keys():
        return False
    alternatives = entry["top_logprobs"]
    return isinstance(alternatives, list) and all(_is_alternative(item) for item in [entry, *alternatives])


def _is_alternative(item: Any) -> bool:
    return (
        isinstance(item, dict) and isinstance(item.get("token"), str) and isinstance(item.get("logprob"), int | float)
    )


def _carries(choice: Mapping[str, Any]) -> bool:
    """Whether a choice's chunk has log-probabilities or token ids."""
    return bool(choice.get("logprobs")) or bool(choice.get("token_ids"))
