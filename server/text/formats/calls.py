"""Reads one call of a tool: its name, then its arguments as they come."""

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence

from server.text.formats.characters import Characters, Give, Malformed, Reading, unquoted
from server.text.formats.python_literals import literal_as_json, read_argument
from server.text.formats.tool_formats import JsonCall, NamedCall, PythonCall, TaggedCall, ToolFormat
from server.text.formats.value_types import ANY_TYPE, TEXT_ONLY, JsonTypes, value_as_json

NAME = re.compile(r"[\w.\-:/]*")
_BESIDE = ("type", "id", "function")  # what else stands in OpenAI's JSON of a call
_KEY = re.compile(r"[^<>\n]*")


class CallReader:
    """Reads a call in the form of a description.

    Args:
        chars: the text, at the call's first character.
        known: the parameters of each tool, in order, with their types.
        only_known: what names another tool is no call.
        begin: is told the name, and the id if the model gave one; from then on the call is one.
        give: is given the arguments, the text of a JSON object, piece by piece.
    """

    def __init__(
        self,
        chars: Characters,
        known: Mapping[str, Mapping[str, JsonTypes]],
        only_known: bool,
        begin: Callable[[str, str], None],
        give: Give,
    ) -> None:
        self._chars = chars
        self._known = known
        self._only_known = only_known
        self._tell = begin
        self._give_on = give
        self._name = ""
        self._given = False  # some of the arguments
        self._early: list[str] = []  # arguments that came before the name

    def read(self, tools: ToolFormat) -> Reading[None]:
        """Read it, as far as it goes.

        Raises:
            Malformed: it has no name, so it is none.
        """
        try:
            match tools.call:
                case JsonCall() as call:
                    yield from self._json(call)
                case NamedCall() as call:
                    yield from self._named(call)
                case TaggedCall() as call:
                    yield from self._tagged(call, (call.key[0], *filter(None, (tools.call_end, *tools.end))))
                case PythonCall():
                    yield from self._python()
        except Malformed:
            if not self._name:
                raise
        if not self._name:
            raise Malformed
        if not self._given:
            self._give_on("{}")

    def _begin(self, name: str, given_id: str = "") -> None:
        if not name or NAME.fullmatch(name) is None or (self._only_known and name not in self._known):
            raise Malformed
        self._name = name
        self._tell(name, given_id)
        for piece in self._early:
            self._give(piece)

    def _give(self, piece: str) -> None:
        if not self._name:
            self._early.append(piece)
        elif piece:
            self._given = True
            self._give_on(piece)

    def _json(self, call: JsonCall, inside: bool = False) -> Reading[None]:
        """An object with a name and arguments, in either order; other entries are passed over."""
        chars = self._chars
        yield from chars.expect("{")
        while True:
            yield from chars.skip()
            if (yield from chars.literal(("}",))):
                return
            key = yield from chars.string()
            yield from chars.skip()
            yield from chars.expect(":")
            yield from chars.skip()
            if key == "name" and not self._name:
                self._begin((yield from chars.string()))
            elif key in call.arguments and not self._given and not self._early:
                yield from self._arguments()
            elif key == "function" and not inside and (yield from chars.peek()) == "{":
                yield from self._json(call, inside=True)  # as in OpenAI's JSON of a call
            elif self._only_known and not self._name and key not in (*_BESIDE, *call.arguments):
                raise Malformed  # an answer in JSON, which shall not wait for its end
            else:
                yield from chars.value(_nowhere)
            yield from chars.skip()
            yield from chars.literal((",",))

    def _arguments(self) -> Reading[None]:
        """The arguments' value: an object, or a string that spells one."""
        chars = self._chars
        first = yield from chars.peek()
        if first == "{":
            yield from chars.value(self._give)
            return
        pieces: list[str] = []
        yield from chars.value(pieces.append)
        text = "".join(pieces)
        if first == '"':
            with contextlib.suppress(Malformed):
                text = unquoted(text)
        self._give(text if text != "null" else "")

    def _named(self, call: NamedCall) -> Reading[None]:
        chars = self._chars
        if call.before:
            yield from chars.expect(call.before)
            yield from chars.skip()
        name = yield from chars.word(NAME)
        given_id = ""
        if call.numbered and name.rpartition(call.numbered)[2].isdigit():
            given_id = call.before + name
            name = name.rpartition(call.numbered)[0]
        if call.before_id and (yield from chars.literal((call.before_id,))):
            given_id = yield from chars.word(NAME)
        yield from chars.skip()
        yield from chars.expect(call.separator.strip())
        yield from chars.skip()
        self._begin(name, given_id)
        yield from self._arguments()
        if call.after:
            yield from chars.skip()
            yield from chars.literal((call.after.strip(),))

    def _tagged(self, call: TaggedCall, follow: Sequence[str]) -> Reading[None]:
        """A call in tags. `follow`: what comes behind the name; what has none of it is no call."""
        chars = self._chars
        name = yield from chars.word(NAME)
        if call.name_end:
            yield from chars.skip()
            yield from chars.expect(call.name_end)
        yield from chars.skip()
        found = yield from chars.literal(follow)
        if not found:
            raise Malformed
        chars.at -= len(found)
        self._begin(name)
        between = "{"
        while (yield from chars.literal((call.key[0],))):
            key = yield from chars.word(_KEY)
            if not (yield from chars.literal((call.key[1],))):
                break
            types = self._known.get(name, {}).get(key, ANY_TYPE)
            yield from self._tagged_value(call, f"{between}{json.dumps(key, ensure_ascii=False)}: ", types)
            between = ", "
            yield from chars.skip()
        if (yield from chars.peek()):  # if not, it was cut off
            self._give("{}" if between == "{" else "}")

    def _tagged_value(self, call: TaggedCall, head: str, types: JsonTypes) -> Reading[None]:
        """A value and its key. A text is handed on as it comes, another value once it is complete."""
        chars, (begin, end) = self._chars, call.value
        if begin:
            yield from chars.skip()
            yield from chars.literal((begin,))
        if call.lines:
            yield from chars.literal(("\n",))
        ends = (f"\n{end}", end) if call.lines else (end,)
        if types == TEXT_ONLY:
            self._give(f'{head}"')
            if (yield from chars.until(ends, lambda text: self._give(json.dumps(text, ensure_ascii=False)[1:-1]))):
                self._give('"')
            return
        pieces: list[str] = []
        if (yield from chars.until(ends, pieces.append)):
            self._give(head + value_as_json("".join(pieces), types))

    def _python(self) -> Reading[None]:
        """A call in Python's syntax. Each argument is handed on once it is complete."""
        chars = self._chars
        name = yield from chars.word(NAME)
        yield from chars.expect("(")
        self._begin(name)
        known = self._known.get(name, {})
        order = list(known)
        self._give("{")
        between = ""
        while True:
            yield from chars.skip()
            if (yield from chars.literal((")",))):
                break
            key, source = yield from read_argument(chars, known)
            if key is None:
                key = order[0] if order else "value"
            if key in order:
                order.remove(key)
            self._give(f"{between}{json.dumps(key)}: {literal_as_json(source)}")
            between = ", "
            yield from chars.skip()
            yield from chars.literal((",",))
        self._give("}")


def _nowhere(text: str) -> None:
    """Takes a value that nobody asked for."""
