"""An answer as a row of parts: reasoning, texts, calls of tools. What the events of both dialects are made from.

A part opens, grows and closes before the next one opens. The answer without a stream is what all parts have grown to.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from scheduler.types.messages import FinishReason
from scheduler.types.step import TokenLogprobs
from server.errors import ApiError
from server.stream.generation import Delta, Generation
from server.text.message_parser import CallArguments, CallBegin, Reasoning, Text

JsonObject = dict[str, Any]
Event = tuple[str, JsonObject]  # its name, and its data

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode


class PartKind(Enum):
    """What a part is."""

    REASONING = "reasoning"
    TEXT = "text"
    CALL = "call"


@dataclass(slots=True)
class AnswerPart:
    """One part, as far as it has come: of a call, its arguments. `logprobs` only of texts, where they are asked for."""

    kind: PartKind
    index: int
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


class EventWriter(ABC):
    """Deltas to the events of a dialect. Subclasses say what the events are."""

    around_text: Callable[[], tuple[bytes, bytes]] | None = (
        None  # an event has a number, and what was said is told once more at the end
    )

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.parts: list[AnswerPart] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self._open = False
        self._untold: list[TokenLogprobs] = []  # of tokens whose text is held back, or is none
        self._scored = 0  # tokens that came with log-probabilities

    def write(self, deltas: Iterable[Delta]) -> bytes:
        """The events of one step, for one write."""
        return b"".join(self.each(deltas))

    def each(self, deltas: Iterable[Delta]) -> list[bytes]:
        """The events of one step, as they are sent."""
        return [self.written(event) for event in self.events(deltas)]

    def events(self, deltas: Iterable[Delta]) -> Iterator[Event]:
        """The events of one step. An answer has one choice."""
        for delta in deltas:
            if delta.first:
                yield from self.begun()
            yield from self._gained(delta)
            if delta.finish_reason is not None:
                self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
                if not self.parts:
                    yield from self._begin(PartKind.TEXT)  # clients look for one
                if self._untold and self.parts[-1].kind is PartKind.TEXT:
                    yield from self._grow(PartKind.TEXT, "")
                yield from self._close()

    def written(self, event: Event) -> bytes:
        """An event as it is sent."""
        name, data = event
        return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(data))

    @property
    def calls(self) -> bool:
        """Whether the model calls tools."""
        return any(part.kind is PartKind.CALL for part in self.parts)

    def _gained(self, delta: Delta) -> Iterator[Event]:
        """What the delta brings. Log-probabilities go with the next text, unless what follows is none."""
        if delta.logprobs:
            self._score(delta.logprobs)
        if self.generation.job.form is None:
            yield from self._grow(PartKind.TEXT, delta.text)
            return
        for event in delta.events:
            match event:
                case Text(text):
                    yield from self._grow(PartKind.TEXT, text)
                case Reasoning(text):
                    yield from self._grow(PartKind.REASONING, text)
                case CallBegin(_, call_id, name):
                    yield from self._close()
                    yield from self._begin(PartKind.CALL, call_id, name)
                case CallArguments(_, text):
                    yield from self._grow(PartKind.CALL, text)
        if delta.events and self.parts[-1].kind is not PartKind.TEXT:
            self._untold = []

    def _score(self, logprobs: list[TokenLogprobs]) -> None:
        """Keep the log-probabilities of these tokens, and of none that was only thought."""
        self._scored += len(logprobs)
        self._untold += logprobs
        said = max(0, self._scored - self.generation.choices[0].reasoning_tokens)
        del self._untold[: max(0, len(self._untold) - said)]

    def _grow(self, kind: PartKind, text: str) -> Iterator[Event]:
        logprobs: list[TokenLogprobs] = []
        if kind is PartKind.TEXT:
            logprobs, self._untold = self._untold, logprobs
        if not text and not logprobs:
            return
        if not self._open or self.parts[-1].kind is not kind:
            yield from self._close()
            yield from self._begin(kind)
        part = self.parts[-1]
        part.pieces.append(text)
        part.logprobs += logprobs
        yield from self.grown(part, text, logprobs)

    def _begin(self, kind: PartKind, call_id: str = "", name: str = "") -> Iterator[Event]:
        self.parts.append(AnswerPart(kind, len(self.parts), call_id, name))
        self._open = True
        yield from self.opened(self.parts[-1])

    def _close(self) -> Iterator[Event]:
        if self._open:
            self._open = False
            yield from self.closed(self.parts[-1])

    @abstractmethod
    def begun(self) -> Iterator[Event]:
        """What stands in front of all parts."""

    @abstractmethod
    def opened(self, part: AnswerPart) -> Iterator[Event]:
        """A part begins."""

    @abstractmethod
    def grown(self, part: AnswerPart, text: str, logprobs: list[TokenLogprobs]) -> Iterator[Event]:
        """A part, which has it already, gained this."""

    @abstractmethod
    def closed(self, part: AnswerPart) -> Iterator[Event]:
        """A part is complete, or the answer ends within it."""

    @abstractmethod
    def answer(self) -> JsonObject:
        """The whole answer, once it has ended."""

    @abstractmethod
    def end(self) -> bytes:
        """What stands behind all parts."""

    @abstractmethod
    def failed(self, error: ApiError) -> bytes:
        """What ends the answer where something went wrong."""


def added_up(make: Callable[[], EventWriter]) -> Callable[[list[Delta]], bytes]:
    """The body of an answer without a stream: what the events of all deltas add up to."""

    def body(deltas: list[Delta]) -> bytes:
        writer = make()
        for _ in writer.events(deltas):
            pass
        return encode(writer.answer())

    return body
