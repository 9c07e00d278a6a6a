"""From a message's text, as it arrives, to what it consists of: reasoning, text, calls of tools.

The message is read by a generator that waits where the text that has arrived is used up (`server/text/formats/characters.py`),
so cutting the text into other pieces cuts events into other pieces and changes nothing else. A text that only begins like a call
is text; once the name of a call was sent, what follows is this call. Nothing is dropped but the format's own markers, and white
space between them.
"""

import itertools
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from server.text.formats.calls import NAME, CallReader
from server.text.formats.characters import SPACE, Characters, Malformed, Reading
from server.text.formats.tool_formats import JsonCall, PythonCall, ReasoningFormat, ToolFormat
from server.text.formats.value_types import JsonTypes
from server.text.tokenizer import Tokenizer

_BETWEEN = re.compile(r"[\s,;}]*")  # small models close more braces than they have opened


@dataclass(frozen=True, slots=True)
class Text:
    """More of what is said."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what is thought before."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of a tool begins; its arguments follow. `index`: which call of the message it is."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, the text of a JSON object."""

    index: int
    text: str


MessageDelta = Text | Reasoning | CallBegin | CallArguments


def new_call_id(length: int = 0) -> str:
    """An id that no other call has; of so many letters and digits, or as OpenAI's look."""
    return uuid.uuid4().hex[:length] if length else f"call_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageForm:
    """How the message of one request is to be read.

    Attributes:
        tools: how calls are written; None: there are none.
        parameters: for each tool that may be called the types of its parameters by their names, in order.
        reasoning: how reasoning is told from the rest; None: it is not.
        thinks: the prompt ends within reasoning.
        thought: and has some of it, so that white space now is between its words.
    """

    tools: ToolFormat | None = None
    parameters: Mapping[str, Mapping[str, JsonTypes]] = field(default_factory=dict)
    reasoning: ReasoningFormat | None = None
    thinks: bool = False
    thought: bool = False

    def shown_tokens(self, tokenizer: Tokenizer) -> frozenset[int]:
        """The special tokens that are part of a format, so that the parser must see them in the text."""
        texts = [text for each in (self.tools, self.reasoning) if each is not None for text in each.texts()]
        special, added = tokenizer.special_ids, tokenizer.added_tokens
        return frozenset(token for token in special if any(added[token] in text for text in texts if added[token]))


class MessageParser:
    """One message on its way: text in, events out.

    Attributes:
        calls: how many have begun.
        reasoning: the characters of the whole text, from the first to behind the last, that are reasoning or its tags.
    """

    def __init__(self, form: MessageForm, new_id: Callable[[int], str] = new_call_id) -> None:
        self.calls = 0
        self.reasoning = range(0)
        self._form = form
        self._new_id = new_id
        self._ids: set[str] = set()
        self._chars = Characters()
        self._events: list[MessageDelta] = []
        self._blank: str | None = ""  # white space before a text, until something follows; None: the text has begun
        self._thought = form.thought  # something but white space
        self._thought_space = ""
        tools = form.tools
        self._id_length = tools.id_length if tools is not None else 0
        self._markers = (*tools.begin, *filter(None, tools.bare)) if tools is not None else ()
        firsts = re.escape("".join({marker[0] for marker in self._markers}))
        self._plain = re.compile(f"[^{firsts}]*" if firsts else r"[\s\S]*")
        self._message = self._read()
        next(self._message)

    def push(self, text: str) -> list[MessageDelta]:
        """What this text adds."""
        self._chars.add(text)
        return self._go_on()

    def finish(self) -> list[MessageDelta]:
        """What was held back. Call once, at the end."""
        self._chars.ended = True
        return self._go_on()

    def _go_on(self) -> list[MessageDelta]:
        next(self._message, None)
        events, self._events = self._events, []
        return list(_joined(events))

    def _read(self) -> Reading[None]:
        chars, tools = self._chars, self._form.tools
        yield from self._think()
        if tools is not None and "" in tools.bare:
            yield from chars.run(SPACE, self._say)
            yield from self._try_calls(tools, bare=True, marker="")
        while (yield from chars.peek()):
            yield from chars.run(self._plain, self._say)
            marker = yield from chars.literal(self._markers)
            if tools is not None and marker:
                yield from self._try_calls(tools, bare=marker not in tools.begin, marker=marker)
            elif char := (yield from chars.peek()):
                chars.at += 1
                self._say(char)
        if self._blank and not self.calls and not self.reasoning:
            self._events.append(Text(self._blank))

    # Text and reasoning

    def _say(self, text: str) -> None:
        if self._blank is not None:
            text = self._blank + text
            if not text or text.isspace():
                self._blank = text
                return
            self._blank = None
            if self.reasoning and not self.calls:
                text = text.lstrip()
        if text:
            self._events.append(Text(text))

    def _think(self) -> Reading[None]:
        form, chars = self._form.reasoning, self._chars
        if form is None:
            return
        if not self._form.thinks:
            yield from chars.run(SPACE, self._say)
        begin = chars.place
        if not (yield from chars.literal((form.begin,))) and not self._form.thinks:
            return
        self._blank, self.reasoning = "", range(begin, 2**62)
        yield from chars.until((form.end,), self._reason)
        self.reasoning = range(begin, chars.place)

    def _reason(self, text: str) -> None:
        """White space around it is not part of it."""
        text = self._thought_space + text
        shown = text.rstrip()
        self._thought_space = text[len(shown) :] if shown or self._thought else ""
        shown = shown if self._thought else shown.lstrip()
        if shown:
            self._thought = True
            self._events.append(Reasoning(shown))

    # Calls

    def _try_calls(self, tools: ToolFormat, *, bare: bool, marker: str) -> Reading[None]:
        """Calls, behind their marker; what is none is text."""
        calls = self.calls
        self._chars.keep()
        try:
            yield from self._calls(tools, bare)
        except Malformed:
            self._chars.back()
            if self.calls == calls:
                self._say(marker)
        self._chars.release()

    def _calls(self, tools: ToolFormat, bare: bool) -> Reading[None]:
        chars = self._chars
        yield from chars.skip()
        listed = isinstance(tools.call, JsonCall | PythonCall) and bool((yield from chars.literal(("[",))))
        if isinstance(tools.call, PythonCall) and not listed:
            raise Malformed
        while True:
            yield from chars.skip()
            if tools.call_begin:
                yield from chars.expect(tools.call_begin)
            yield from CallReader(chars, self._form.parameters, bare, self._begin_call, self._give).read(tools)
            yield from chars.skip()
            if tools.call_end:
                yield from chars.literal((tools.call_end,))
            if not (yield from self._goes_on(tools, listed)):
                return

    def _goes_on(self, tools: ToolFormat, listed: bool) -> Reading[bool]:
        """Whether another call of the section seems to follow; if not, behind the section's end."""
        chars = self._chars
        chars.keep()
        yield from chars.skip(_BETWEEN)
        if listed and (yield from chars.literal(("]",))):
            chars.keep()
            yield from chars.skip()
        if (yield from chars.literal(tools.end)):
            chars.release()
            return False
        if tools.call_begin:
            more = bool((yield from chars.literal((tools.call_begin,))))
            chars.at -= len(tools.call_begin) * more
        else:
            begins = "{" if isinstance(tools.call, JsonCall) else None
            char = yield from chars.peek()
            more = char == begins if begins else listed and bool(char) and NAME.fullmatch(char) is not None
        if not more:
            chars.back()
        return more

    def _begin_call(self, name: str, given_id: str) -> None:
        call_id = given_id if given_id and given_id not in self._ids else self._new_id(self._id_length)
        self._ids.add(call_id)
        self._events.append(CallBegin(self.calls, call_id, name))
        self.calls += 1
        self._blank = ""
        self._chars.release()

    def _give(self, arguments: str) -> None:
        self._events.append(CallArguments(self.calls - 1, arguments))


def _joined(events: list[MessageDelta]) -> Iterator[MessageDelta]:
    """Neighbours of one kind as one."""
    for kind, group in itertools.groupby(events, type):
        if kind is CallBegin:
            yield from group
            continue
        alike = [each for each in group if not isinstance(each, CallBegin)]
        yield replace(alike[0], text="".join([each.text for each in alike])) if len(alike) > 1 else alike[0]
