"""The grammar of a message that may, or must, call tools: from the description by which it is also read.

Without tools in it the text is free. Once a call has begun, it is one of the tools that may be called, with arguments that fit its
parameters, to the end of the call. What is thought first is free to its closing tag, whatever follows.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.structured.grammar import Grammar, json_text, lark_string, lark_term, regex_in_lark, schema_source
from server.text.formats.tool_formats import JsonCall, NamedCall, PythonCall, TaggedCall, ToolFormat
from server.text.formats.value_types import resolved, types_of, values_of
from server.text.message_parser import MessageForm

_SPACE = r"SPACE: /[ \n\r\t]{1,4}/"
_NUMBER = r"NUMBER: /[0-9]{1,4}/"
_SPACES = r"[ \n\r\t]*"
_TEXT = r"TEXT: /(.|\n)*/"
# Arguments in one line, as templates show them: a model that may indent spends a third of their tokens on it.
_ONE_LINE = {
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "item_separator": ",[ ]?",
    "key_separator": ":[ ]?",
}


@dataclass(frozen=True, slots=True)
class CallableTool:
    """A tool that may be called. Where it is not `strict`, what of its parameters' schema no grammar can say is left out."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False

    def schema(self, part: Mapping[str, Any] | None = None) -> str:
        """The arguments' schema, or that of a part of them, as a term of Lark."""
        whole = {**self.parameters, "type": "object"} if part is None else {**self._definitions(), **part}
        text = schema_source(whole, {"lenient": not self.strict, **_ONE_LINE})
        return "%json " + text.replace("::=", r":\u003a=")  # else it would pass for GBNF

    @property
    def properties(self) -> Mapping[str, Any]:
        """The arguments' schemas by name."""
        properties = self.parameters.get("properties")
        return properties if isinstance(properties, dict) else {}

    @property
    def required(self) -> Sequence[str]:
        """The arguments that must be given, in their order."""
        required = self.parameters.get("required")
        return [name for name in self.properties if isinstance(required, list) and name in required]

    def _definitions(self) -> dict[str, Any]:
        return {key: self.parameters[key] for key in ("$defs", "definitions") if key in self.parameters}


class MessageGrammar:
    """Makes the grammar of one request's message.

    Args:
        form: how the message will be read.
        tools: those that may be called.
        special: the model's special tokens, by their spelling: text never has them, and a grammar names them by number.
        required: whether it must call.
        parallel: whether it may call more than once.
        content: what the message has to fit where it does not call; None: any text.
    """

    def __init__(
        self,
        form: MessageForm,
        tools: Sequence[CallableTool],
        special: Mapping[str, int],
        *,
        required: bool = False,
        parallel: bool = True,
        content: Grammar | None = None,
    ) -> None:
        self._form = form
        self._tools = tools
        self._special = special
        self._split = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        self._required = required
        self._parallel = parallel
        self._content = content

    def lark(self) -> str:
        """The grammar, in Lark."""
        return "\n".join([*self._start(), *self._calls(), _SPACE, _NUMBER, _TEXT, ""])

    def _marked(self, text: str) -> str:
        """A text of the format, with its special tokens by number."""
        parts: list[str] = []
        done = 0
        for found in self._split.finditer(text):
            parts += [lark_string(text[done : found.start()])] if found.start() > done else []
            parts.append(f"<[{self._special[found[0]]}]>")
            done = found.end()
        parts += [lark_string(text[done:])] if done < len(text) else []
        return " ".join(parts)

    # The whole

    def _start(self) -> Iterator[str]:
        reasoning = self._form.reasoning
        free = self._content is None and not self._required
        if reasoning is None:
            yield "start: main"
        elif self._form.thinks:
            yield "start: thought main"
            yield from self._until(reasoning.end, "thought", "TEXT")
        elif reasoning.begin in self._special:
            yield "start: (SPACE? thought)? main"
            yield f"thought: <[{self._special[reasoning.begin]}]> rest_of_thought"
            yield from self._until(reasoning.end, "rest_of_thought", "TEXT")
        else:
            begin, end = (regex_in_lark(re.escape(tag)) for tag in (reasoning.begin, reasoning.end))
            yield f"start: thought main | {'unthought' if free else 'main'}"
            yield rf"thought[lazy]: /[ \n\r\t]*{begin}(.|\n)*{end}/"
            if free:
                yield rf"FIRST: TEXT & ~/[ \n\r\t]*{begin}(.|\n)*/"
                yield from self._free("unthought", "FIRST")
        if free:
            yield from self._free("main", "TEXT")
            return
        called = "SPACE? called" if self._tools else ""
        content = "" if self._content is None or self._required else f"SPACE? {lark_term(self._content)}"
        yield "main: " + " | ".join(filter(None, (called, content)))

    def _until(self, tag: str, name: str, text: str) -> Iterator[str]:
        """A rule of text up to the first occurrence of a marker."""
        if tag in self._special:
            yield f"{name}: {text} <[{self._special[tag]}]>"
        else:
            yield f"{name}[lazy]: {text} {lark_string(tag)}"

    def _free(self, name: str, first: str) -> Iterator[str]:
        """A rule of text with calls in it, which begins with text of a kind of its own."""
        tools = self._form.tools
        if tools is None or not self._tools:
            yield f"{name}: {first}"
            return
        begun: list[str] = []
        for i, marker in enumerate(tools.begin):
            yield from self._until(marker, f"{name}_until_{i}", first)
            begun.append(f"{name}_until_{i} section")
        for rule in self._opened(name, first):
            yield rule
            begun += [f"{name}_opened"] if rule.startswith(f"{name}_opened:") else []
        bare = " | bare" if "" in tools.bare else ""
        if not self._parallel:
            yield f"{name}: {' | '.join(begun)} | {first}{bare}"
        elif first == "TEXT":
            yield f"{name}: {name}_call* {first}{bare}"
            yield f"{name}_call: {' | '.join(begun)}"
        else:
            yield f"{name}: ({' | '.join(begun)}) main | {first}{bare}"

    # Calls

    def _calls(self) -> Iterator[str]:
        tools = self._form.tools
        if tools is None or not self._tools:
            return
        for i, tool in enumerate(self._tools):
            yield f"call_{i}: {self._call(tools, tool, i)}"
            yield from self._arguments(tools, tool, i)
        yield "call: " + " | ".join(f"call_{i}" for i in range(len(self._tools)))
        if isinstance(tools.call, TaggedCall):
            yield from self._until(tools.call.value[1], "text_value", "TEXT")
        pad, end = self._marked(tools.pad), self._marked((*tools.end, "")[0])
        one = f"{self._marked(tools.call_begin)} call {self._marked(tools.call_end)}"
        more = f"({self._marked(tools.between)} {one})*" if self._parallel and tools.shared else ""
        listed = f'"[" {one} {more} "]"' if tools.listed else f"{one} {more}"
        yield f"section: {pad} {listed} {pad} {end}"
        if not tools.marked:
            yield f"called: {listed}"
        elif tools.shared or not self._parallel:
            yield f"called: {self._marked(tools.begin[0])} section"
        else:
            again = self._marked(tools.between + tools.begin[0])
            yield f"called: {self._marked(tools.begin[0])} section ({again} section)*"
        if "" in tools.bare and not self._required and self._content is None:
            yield from self._bare(tools)

    def _bare(self, tools: ToolFormat) -> Iterator[str]:
        """Calls that begin the message without a marker. Each names a tool, so it is known for one as soon as it does."""
        indexes = range(len(self._tools))
        match tools.call:
            case JsonCall():
                yield r"BETWEEN: /[ \n\r\t,;]{1,4}/"
                for i in indexes:
                    yield f"bare_{i}[lazy]: /{_SPACES}{self._named(tools.call, i)}/"
                    yield f'object_{i}: SPACE? arguments_{i} SPACE? "}}"'
                    yield f"again_{i}: /{self._named(tools.call, i)}/ object_{i}"
                more = f"(BETWEEN? ({_any('again_{}', indexes)}))*" if self._parallel else ""
                yield f"bare: ({_any('bare_{0} object_{0}', indexes)}) {more}"
            case PythonCall():
                more = f"({self._marked(tools.between)} call)*" if self._parallel else ""
                for i, tool in enumerate(self._tools):
                    yield rf"bare_{i}[lazy]: /{_SPACES}\[{_SPACES}{regex_in_lark(re.escape(tool.name))}\(/"
                yield "bare: " + _any('bare_{0} arguments_{0} ")" ' + more + ' "]"', indexes)

    def _opened(self, name: str, first: str) -> Iterator[str]:
        """Calls behind what is no marker of calls, such as a fence of JSON, if they name a tool."""
        tools = self._form.tools
        openings = [re.escape(each) for each in tools.bare if each] if tools is not None else []
        if tools is None or not openings or not isinstance(tools.call, JsonCall):
            return
        for i in range(len(self._tools)):
            opening = regex_in_lark("|".join(openings))
            yield f"{name}_opened_{i}[lazy]: {first} /({opening}){_SPACES}{self._named(tools.call, i)}/"
        indexes = range(len(self._tools))
        more = f"(BETWEEN? ({_any('again_{}', indexes)}))*" if self._parallel else ""
        ends = " | ".join(self._marked(end) for end in tools.end[1:])
        yield f"{name}_opened: ({_any(name + '_opened_{0} object_{0}', indexes)}) {more} SPACE? ({ends})"

    def _named(self, call: JsonCall, i: int) -> str:
        """A regular expression of a call up to its arguments, with any space between."""
        name, keys = regex_in_lark(re.escape(self._tools[i].name)), "|".join(call.arguments)
        return _SPACES.join((r"\{", '"name"', ":", f'"{name}"', ",", f'"({keys})"', ":"))

    def _call(self, tools: ToolFormat, tool: CallableTool, i: int) -> str:
        match tools.call:
            case JsonCall(keys):
                head = f'{{"name": "{tool.name}", "{keys[0]}": '
                return f'{lark_string(head)} arguments_{i} "}}"'
            case NamedCall(separator, before, after, numbered=""):
                return f"{self._marked(before + tool.name + separator)} arguments_{i} {self._marked(after)}"
            case NamedCall(separator, before, after, numbered=number):
                named = f"{self._marked(before + tool.name + number)} NUMBER"
                return f"{named} {self._marked(separator)} arguments_{i} {self._marked(after)}"
            case TaggedCall(name_end=name_end):
                return f"{self._marked(tool.name + name_end)} SPACE? arguments_{i}"
            case PythonCall():
                return f'{lark_string(tool.name + "(")} arguments_{i} ")"'

    def _arguments(self, tools: ToolFormat, tool: CallableTool, i: int) -> Iterator[str]:
        if isinstance(tools.call, TaggedCall):
            yield from self._tagged(tools.call, tool, i)
            return
        if not isinstance(tools.call, PythonCall):
            yield f"arguments_{i}: {tool.schema()}"
            return
        properties, required = tool.properties, tool.required
        others = [key for key in properties if key not in required]
        for j, key in enumerate([*required, *others]):
            part = properties[key] if isinstance(properties[key], dict) else {}
            yield f"argument_{i}_{j}: {lark_string(f'{key}=')} {tool.schema(part)}"
        yield from _keywords(f"arguments_{i}", [f"argument_{i}_{j}" for j in range(len(properties))], len(required))

    def _tagged(self, call: TaggedCall, tool: CallableTool, i: int) -> Iterator[str]:
        """Arguments between tags, in the order of the properties."""
        (key_begin, key_end), (begin, end) = call.key, call.value
        line = r'"\n"' if call.lines else ""
        opened = f"SPACE? {self._marked(begin)}" if begin else line
        parts = []
        for j, (key, schema) in enumerate(tool.properties.items()):
            head = f"{self._marked(f'{key_begin}{key}{key_end}')} {opened}"
            value = tagged_value(tool, schema)
            value = "text_value" if value is None else f"{value} {line} {self._marked(end)}"
            yield f"argument_{i}_{j}: {head} {value} SPACE?"
            parts.append(f"argument_{i}_{j}" if key in tool.required else f"argument_{i}_{j}?")
        yield f"arguments_{i}: " + (" ".join(parts) or '""')


def tagged_value(tool: CallableTool, schema: Any) -> str | None:
    """What may stand between the tags of a value, as a term of Lark; None: any text, as where a text is among what fits."""
    schema = resolved(schema, tool.parameters)
    allowed = values_of(schema) if isinstance(schema, dict) else None
    if allowed:
        written = [each if isinstance(each, str) else json_text(each) for each in allowed]
        return f"({' | '.join(map(lark_string, written))})"
    return None if "string" in types_of(schema, tool.parameters) else tool.schema(schema)


def _any(pattern: str, indexes: Sequence[int]) -> str:
    return " | ".join(pattern.format(i) for i in indexes)


def _keywords(rule: str, names: Sequence[str], required: int) -> Iterator[str]:
    """The rule of a comma list of rules in their order, of which the first so many must be there."""
    if required:
        first = ' ", " '.join(names[:required])
        yield f"{rule}: " + " ".join([first, *(f'(", " {name})?' for name in names[required:])])
        return
    # Whichever is there first has no comma before it: a rule for each that may be the first of the rest.
    yield f"{rule}: " + (f"{rule}_from_0?" if names else '""')
    for j, name in enumerate(names):
        rest = f"{rule}_from_{j + 1}"
        yield f"{rule}_from_{j}: {name}" + (f' (", " {rest})? | {rest}' if j + 1 < len(names) else "")
