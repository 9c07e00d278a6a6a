"""Reads a streamed answer of any OpenAI-compatible server, and checks the rules that all of them keep.

headrace's own streams must also satisfy `loadtest.client.sse_grammar`. Other servers merge the finish reason into the last text,
add keys, or leave out ids, so these rules ask for less: events of JSON, one `[DONE]` and nothing after it, one finish reason per
choice and no text after it, usage if it was asked for.
"""

import json
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
_TEXTS = ("reasoning_content", "reasoning", "content")
_KINDS: dict[type, str] = {str: "a text", dict: "an object", list: "a list"}


@dataclass(slots=True)
class StreamedAnswer:
    """What a streamed answer, or one that was not streamed, said.

    Attributes:
        texts: for each event with text or token ids: when it came, its text, and how many ids it had (None if it had no list).
        error: the message of an error event.
        done: when `[DONE]` came.
        violations: the rules it broke.
    """

    texts: list[tuple[float, str, int | None]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    timings: dict[str, Any] | None = None
    fingerprint: str | None = None
    error: str | None = None
    done: float | None = None
    violations: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(text for _, text, _ in self.texts)


class StreamReader:
    """Takes the events of one stream in order."""

    def __init__(self, *, usage_asked: bool) -> None:
        self.answer = StreamedAnswer()
        self._usage_asked = usage_asked
        self._id: str | None = None

    def feed(self, at: float, data: bytes) -> None:
        """Take the data of one event, which came at `at`; broken rules are noted in the answer. Empty data says nothing."""
        data = data.strip()
        if not data:
            return
        if self.answer.done is not None:
            self._break("an event after [DONE]")
        elif data == b"[DONE]":
            self.answer.done = at
        else:
            self._chunk(at, data)

    def finish(self) -> StreamedAnswer:
        """The stream has ended: what it said. Nothing is required of the end of a stream without `[DONE]`, which is no answer."""
        answer = self.answer
        if answer.error is None and answer.done is not None:
            if answer.finish_reason is None:
                self._break("no finish reason")
            if self._usage_asked and answer.usage is None:
                self._break("no usage though it was asked for")
        return answer

    def _chunk(self, at: float, data: bytes) -> None:
        chunk = json_value(data)
        if not isinstance(chunk, dict):
            self._break(f"not a JSON object: {data[:40]!r}")
            return
        answer = self.answer
        if chunk.get("error") is not None:
            answer.error = error_message(chunk["error"])
            return
        self._same_id(chunk.get("id"))
        answer.fingerprint = answer.fingerprint or self._field(chunk, "system_fingerprint", str)
        answer.timings = self._field(chunk, "timings", dict) or answer.timings
        answer.usage = self._field(chunk, "usage", dict) or answer.usage
        for choice in self._field(chunk, "choices", list) or ():
            if isinstance(choice, dict):
                self._choice(at, choice)
            else:
                self._break("a choice is not an object")

    def _choice(self, at: float, choice: dict[str, Any]) -> None:
        delta, ids = self._field(choice, "delta", dict) or {}, self._field(choice, "token_ids", list)
        told = [self._field(delta, name, str) for name in _TEXTS] + [self._field(choice, "text", str)]
        text = "".join(filter(None, told))
        if text or ids:
            if self.answer.finish_reason is not None:
                self._break("text after the finish reason")
            self.answer.texts.append((at, text, None if ids is None else len(ids)))
        reason = self._field(choice, "finish_reason", str)
        if reason is not None:
            if self.answer.finish_reason is not None:
                self._break("a second finish reason")
            self.answer.finish_reason = reason

    def _field(self, owner: dict[str, Any], name: str, kind: type[T]) -> T | None:
        """A field that is null, absent, or of this kind; None and a broken rule if it is anything else."""
        value = owner.get(name)
        if value is None or isinstance(value, kind):
            return value
        self._break(f"`{name}` is not {_KINDS[kind]}")
        return None

    def _same_id(self, id: str | None) -> None:
        if self._id is None:
            self._id = id
        elif id is not None and id != self._id:
            self._break("the id changes inside the stream")

    def _break(self, rule: str) -> None:
        if rule not in self.answer.violations:
            self.answer.violations.append(rule)


def json_value(data: bytes) -> Any:
    """The JSON value in `data`; None if it is not JSON in UTF-8, or is nested too deep to be read."""
    try:
        return json.loads(data.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def error_message(error: Any) -> str:
    """What an error says: its `message`, or all of it."""
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(error)


def whole_answer(body: Any) -> StreamedAnswer:
    """An answer that was not streamed, in the same form. Raises ValueError if it is not one choice with a text."""
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise ValueError("the answer is not an object with one choice")
    choice, usage, message = choices[0], body.get("usage"), choices[0].get("message") or {}
    if not isinstance(message, dict) or not isinstance(usage, dict | None):
        raise ValueError("message and usage are objects")
    told = [choice.get("text"), *(message.get(name) for name in _TEXTS)]
    if not all(isinstance(text, str | None) for text in told):
        raise ValueError("the answer's text is not a text")
    text = "".join(filter(None, told))
    return StreamedAnswer(texts=[(0.0, text, None)], finish_reason=choice.get("finish_reason"), usage=usage)
