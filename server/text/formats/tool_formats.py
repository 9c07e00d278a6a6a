"""How models write what is not text: calls of tools, and what they think first. Each format is a description, and nothing else.

From a description come the parser's rules (`server/text/message_parser.py`) and the grammar of an answer that must be, or may
contain, a call. Sources: the models' chat templates and vLLM's tool parsers, whose names these formats have.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JsonCall:
    """A call as a JSON object: `{"name": ..., "arguments": {...}}`. Of several keys the first is the one to write."""

    arguments: tuple[str, ...] = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class NamedCall:
    """A call as `before` name `separator` arguments `after`; the arguments are JSON. Spaces at the ends of these may be missing.

    `before_id` stands between the name and an id that some models give to a call. Others number their calls: `numbered` and the
    number follow the name, and `before`, name and number are the id.
    """

    separator: str
    before: str = ""
    after: str = ""
    before_id: str = ""
    numbered: str = ""


@dataclass(frozen=True, slots=True)
class TaggedCall:
    """A call as name `name_end`, then each argument's key and value between tags. Texts stand as they are, other values as JSON.

    `lines`: a value stands on lines of its own.
    """

    key: tuple[str, str]
    value: tuple[str, str]
    name_end: str = ""
    lines: bool = False


@dataclass(frozen=True, slots=True)
class PythonCall:
    """A call as Python writes it: `name(key=value)`. Its values are literals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """How one family of models writes calls within a message: `begin` call `between` call ... `end`.

    Attributes:
        name: for `--tool-format`.
        signs: what a chat template in this format has in its source, all of it.
        begin: markers behind which calls stand; the first is the one to write.
        bare: what calls may stand behind instead, if they name a tool of the request; the empty text is the message's beginning.
        listed: calls are written as entries of one list in brackets.
        call: how one call is written.
        call_begin, call_end: what stands around each call.
        between: what stands between two calls. If calls do not share a section, `end` and `begin` stand there, too.
        end: markers that end the calls; the first is the one to write.
        shared: calls stand in one section, behind one `begin`.
        pad: what is written behind `begin` and before `end`.
        id_length: of the ids of calls, letters and digits, where templates insist on it; 0: any.
        marked: calls are written behind a marker; if not, they are the whole message, and the markers are for other purposes.
    """

    name: str
    signs: tuple[str, ...]
    begin: tuple[str, ...]
    call: JsonCall | NamedCall | TaggedCall | PythonCall
    bare: tuple[str, ...] = ()
    listed: bool = False
    call_begin: str = ""
    call_end: str = ""
    between: str = ""
    end: tuple[str, ...] = ()
    shared: bool = True
    pad: str = ""
    id_length: int = 0
    marked: bool = True

    def texts(self) -> Iterator[str]:
        """All that the format consists of, apart from names and arguments."""
        yield from (*self.begin, *self.bare, self.call_begin, self.call_end, *self.end)
        if isinstance(self.call, NamedCall):
            yield from (self.call.before, self.call.separator, self.call.after, self.call.before_id)
        if isinstance(self.call, TaggedCall):
            yield from (*self.call.key, *self.call.value)


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """What stands around the reasoning with which a message begins."""

    name: str
    begin: str
    end: str

    def texts(self) -> Iterator[str]:
        """All that the format consists of."""
        yield from (self.begin, self.end)


_IN_LINES = TaggedCall(name_end=">", key=("<parameter=", ">"), value=("", "</parameter>"), lines=True)

# The more particular first: the first whose signs a template has is its format.
TOOL_FORMATS: Mapping[str, ToolFormat] = {
    each.name: each
    for each in (
        ToolFormat(
            name="deepseek_v3",
            signs=("<｜tool▁sep｜>", "```json"),
            begin=("<｜tool▁calls▁begin｜>",),
            call=NamedCall(before="function<｜tool▁sep｜>", separator="\n```json\n", after="\n```"),
            call_begin="<｜tool▁call▁begin｜>",
            call_end="<｜tool▁call▁end｜>",
            between="\n",
            end=("<｜tool▁calls▁end｜>",),
        ),
        ToolFormat(
            name="deepseek_v31",
            signs=("<｜tool▁sep｜>",),
            begin=("<｜tool▁calls▁begin｜>",),
            call=NamedCall(separator="<｜tool▁sep｜>"),
            call_begin="<｜tool▁call▁begin｜>",
            call_end="<｜tool▁call▁end｜>",
            end=("<｜tool▁calls▁end｜>",),
        ),
        ToolFormat(
            name="kimi_k2",
            signs=("<|tool_calls_section_begin|>",),
            begin=("<|tool_calls_section_begin|>",),
            call=NamedCall(before="functions.", numbered=":", separator="<|tool_call_argument_begin|>"),
            call_begin="<|tool_call_begin|>",
            call_end="<|tool_call_end|>",
            end=("<|tool_calls_section_end|>",),
        ),
        ToolFormat(
            name="seed_oss",
            signs=("<seed:tool_call>", "<function="),
            begin=("<seed:tool_call>",),
            call=_IN_LINES,
            call_begin="<function=",
            call_end="</function>",
            between="\n",
            end=("</seed:tool_call>",),
            shared=False,
            pad="\n",
        ),
        ToolFormat(
            name="qwen3_coder",
            signs=("<tool_call>", "<function="),
            begin=("<tool_call>",),
            call=_IN_LINES,
            call_begin="<function=",
            call_end="</function>",
            between="\n",
            end=("</tool_call>",),
            shared=False,
            pad="\n",
        ),
        ToolFormat(
            name="glm45",
            signs=("<tool_call>", "<arg_key>"),
            begin=("<tool_call>",),
            call=TaggedCall(key=("<arg_key>", "</arg_key>"), value=("<arg_value>", "</arg_value>")),
            between="\n",
            end=("</tool_call>",),
            shared=False,
        ),
        ToolFormat(
            name="mistral_args",
            signs=("[TOOL_CALLS]", "[ARGS]"),
            begin=("[TOOL_CALLS]",),
            call=NamedCall(separator="[ARGS]", before_id="[CALL_ID]"),
            shared=False,
            id_length=9,
        ),
        ToolFormat(
            name="mistral",
            signs=("[TOOL_CALLS]",),
            begin=("[TOOL_CALLS]",),
            call=JsonCall(),
            listed=True,
            between=", ",
            id_length=9,
        ),
        ToolFormat(
            name="granite",
            signs=("<|tool_call|>",),
            begin=("<|tool_call|>", "<tool_call>"),
            call=JsonCall(),
            listed=True,
            between=", ",
            end=("</tool_call>",),
        ),
        ToolFormat(
            name="pythonic",
            signs=("<|python_start|>",),
            begin=("<|python_start|>",),
            call=PythonCall(),
            bare=("",),
            listed=True,
            between=", ",
            end=("<|python_end|>",),
            marked=False,
        ),
        ToolFormat(
            name="llama3_json",
            signs=("<|python_tag|>",),
            begin=("<|python_tag|>",),
            call=JsonCall(("parameters", "arguments")),
            bare=("",),
            between="; ",
            marked=False,
        ),
        ToolFormat(
            name="hermes",
            signs=("<tool_call>",),
            begin=("<tool_call>",),
            call=JsonCall(),
            bare=("", "```json", "<tools>"),  # small Qwens write these in place of the marker
            between="\n",
            end=("</tool_call>", "```", "</tools>"),
            shared=False,
            pad="\n",
        ),
    )
}

REASONING_FORMATS: Mapping[str, ReasoningFormat] = {
    each.name: each
    for each in (
        ReasoningFormat("think", "<think>", "</think>"),
        ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
        ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
        ReasoningFormat("granite", "Here is my thought process:", "Here is my response:"),
    )
}


def tool_format_of(template_source: str) -> ToolFormat | None:
    """The format whose signs a chat template has; None if it has none's."""
    for each in TOOL_FORMATS.values():
        if all(sign in template_source for sign in each.signs):
            return each
    return None


def reasoning_format_of(template_source: str) -> ReasoningFormat | None:
    """The format whose tags a chat template has; None if it has none's."""
    return next((each for each in REASONING_FORMATS.values() if each.end in template_source), None)
