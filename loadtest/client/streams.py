"""Reads a streamed answer of any OpenAI-compatible server, and checks the rules that all of them keep.

headrace's own streams must also satisfy `loadtest.client.sse_grammar`. Other servers merge the finish reason into the last text,
add keys, or leave out ids, so these rules ask for less: events of JSON, one `[DONE]` and nothing after it, one finish reason per
choice and no text after it, usage if it was asked for.
"""

import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


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


def events_of(body: bytes, times: Sequence[float], ends: Sequence[int]) -> Iterator[tuple[float, bytes]]:
    """When the last byte of each event came, and the event with its blank line; bytes that no blank line ends come last.

    Args:
        body: everything received.
        times, ends: when the body's pieces came, and the offsets where they end.
    """
    separator = b"\r\n\r\n" if b"\r\n\r\n" in body else b"\n\n"
    start = 0
    while start < len(body):
        found = body.find(separator, start)
        end = found + len(separator) if found >= 0 else len(body)
        yield times[min(bisect_left(ends, end), len(times) - 1)], body[start:end]
        start = end


class StreamReader:
    """Takes the events of one stream in order."""

    def __init__(self, *, usage_asked: bool) -> None:
        self.answer = StreamedAnswer()
        self._usage_asked = usage_asked
        self._id: str | None = None

    def feed(self, at: float, event: bytes) -> None:
        """Take one event, which came at `at`; broken rules are noted in the answer."""
        data = _data(event)
        if data is None:
            if event.strip() and not event.startswith((b":", b"event:", b"id:", b"retry:")):
                self._break(f"neither data nor a comment: {event[:40]!r}")
            return
        if self.answer.done is not None:
            self._break("an event after [DONE]")
        elif data == b"[DONE]":
            self.answer.done = at
        else:
            self._chunk(at, data)

    def finish(self, *, cut: bool = False) -> StreamedAnswer:
        """The stream has ended: what it said. `cut`: the client left, so nothing can be required of the end."""
        answer = self.answer
        if answer.error is None and not cut:
            if answer.done is None:
                self._break("the stream ends without [DONE]")
            if answer.finish_reason is None:
                self._break("no finish reason")
            if self._usage_asked and answer.usage is None:
                self._break("no usage though it was asked for")
        return answer

    def _chunk(self, at: float, data: bytes) -> None:
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            self._break(f"not a JSON object: {data[:40]!r}")
            return
        answer = self.answer
        if chunk.get("error"):
            answer.error = str(chunk["error"].get("message") if isinstance(chunk["error"], dict) else chunk["error"])
            return
        self._same_id(chunk.get("id"))
        answer.fingerprint = answer.fingerprint or chunk.get("system_fingerprint")
        if isinstance(chunk.get("timings"), dict):
            answer.timings = chunk["timings"]
        if isinstance(chunk.get("usage"), dict):
            answer.usage = chunk["usage"]
        for choice in chunk.get("choices") or ():
            self._choice(at, choice)

    def _choice(self, at: float, choice: Any) -> None:
        if not isinstance(choice, dict):
            self._break("a choice is not an object")
            return
        text, ids = text_of(choice.get("delta") or {}) or str(choice.get("text") or ""), choice.get("token_ids")
        if text or ids:
            if self.answer.finish_reason is not None:
                self._break("text after the finish reason")
            self.answer.texts.append((at, text, len(ids) if isinstance(ids, list) else None))
        reason = choice.get("finish_reason")
        if reason is not None:
            if self.answer.finish_reason is not None:
                self._break("a second finish reason")
            self.answer.finish_reason = str(reason)

    def _same_id(self, id: str | None) -> None:
        if self._id is None:
            self._id = id
        elif id is not None and id != self._id:
            self._break("the id changes inside the stream")

    def _break(self, rule: str) -> None:
        if rule not in self.answer.violations:
            self.answer.violations.append(rule)


def text_of(message: dict[str, Any]) -> str:
    """The text of a chat message or delta, its reasoning included."""
    return "".join(str(message.get(name) or "") for name in ("reasoning_content", "reasoning", "content"))


def whole_answer(body: dict[str, Any]) -> StreamedAnswer:
    """An answer that was not streamed, in the same form."""
    (choice,) = body["choices"]
    text = str(choice.get("text") or "") or text_of(choice.get("message") or {})
    return StreamedAnswer(texts=[(0.0, text, None)], finish_reason=choice.get("finish_reason"), usage=body.get("usage"))


def _data(event: bytes) -> bytes | None:
    """The event's data, its lines joined; None if it has none."""
    if event.startswith(b"data: ") and event.find(b"\n") >= len(event) - 2:  # the usual event of one line
        return event[6:].strip()
    lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
