"""Tools in a chat request: those that are offered, which of them may be called, and the calls of earlier turns."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from server.schema.base import Body, wrong
from server.schema.shown import shown

ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:\-]{1,128}$")]


class OfferedFunction(Body):
    """A function that the model may call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"type"})  # of the tool, which some clients write twice

    name: ToolName
    description: str = Field("", description="What it does, for the model.")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="JSON schema of its arguments, an object; none are taken if it is absent."
    )
    strict: bool = Field(False, description="The arguments fit `parameters` exactly.")


class OfferedTool(Body):
    """A tool that the model may call."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    NESTED: ClassVar[dict[str, type[Body]]] = {"function": OfferedFunction}

    type: Literal["function"]
    function: OfferedFunction


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools may be called, or must be.

    `names`: those that may, None for all. `required`: at least one call, exactly one where it is to be `once`; `none`: no call.
    """

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None
    once: bool = False


CHOICE_MODES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class ChoiceWords:
    """How an API writes `tool_choice`: where a function's name is, and where what is allowed is, as members of objects."""

    name: tuple[str, ...]
    allowed: tuple[str, ...]

    def check(self, value: Any) -> ToolChoice:
        """A mode, a function's name in an object, or the functions that are allowed."""
        if isinstance(value, str):
            if value not in CHOICE_MODES:
                raise wrong(f'must be "none", "auto", "required" or an object, got {shown(value)}')
            return ToolChoice(value)  # type: ignore[arg-type]  # mypy does not narrow by a tuple
        if not isinstance(value, dict):
            raise wrong(f"must be a string or an object, got {shown(value)}")
        if value.get("type") != "allowed_tools":
            return ToolChoice("required", (self._name_in(value, "", '"function" or "allowed_tools"'),), once=True)
        allowed, path = _member(value, self.allowed)
        if not isinstance(allowed, dict):
            raise wrong(f"must be an object, got {shown(allowed)}", path)
        mode, tools = allowed.get("mode"), allowed.get("tools")
        if mode not in ("auto", "required"):
            raise wrong(f'must be "auto" or "required", got {shown(mode)}', f"{path}.mode")
        if not isinstance(tools, list) or not tools:
            raise wrong(f"must be an array of at least one tool, got {shown(tools)}", f"{path}.tools")
        names = (self._name_in(tool, f"{path}.tools[{i}]", '"function"') for i, tool in enumerate(tools))
        return ToolChoice(mode, tuple(dict.fromkeys(names)))

    def _name_in(self, value: Any, path: str, kinds: str) -> str:
        if not isinstance(value, dict):
            raise wrong(f"must be an object, got {shown(value)}", path)
        if value.get("type") != "function":
            raise wrong(f"must be {kinds}, got {shown(value.get('type'))}", f"{path}.type")
        name, inner = _member(value, self.name)
        if not isinstance(name, str):
            raise wrong(f"must be the name of a function, got {shown(name)}", path + inner)
        return name

    def schema(self) -> dict[str, Any]:
        """What `check` lets through."""
        function = _objects({"type": {"enum": ["function"]}}, self.name, {"type": "string"})
        tools = {"type": "array", "items": function, "minItems": 1}
        members = {"mode": {"enum": ["auto", "required"]}, "tools": tools}
        kind: dict[str, Any] = {"type": {"enum": ["allowed_tools"]}}
        allowed = _objects(kind, self.allowed, _object(members)) if self.allowed else _object(kind | members)
        return {"anyOf": [{"enum": list(CHOICE_MODES)}, function, allowed]}


def _member(value: Any, names: tuple[str, ...]) -> tuple[Any, str]:
    """What an object holds under these names, and its path."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value, "".join(f".{name}" for name in names)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _objects(beside: dict[str, Any], names: tuple[str, ...], inner: dict[str, Any]) -> dict[str, Any]:
    """An object that holds `inner` under these names, one in the other, and `beside` in the outermost."""
    for name in reversed(names[1:]):
        inner = _object({name: inner})
    return _object({**beside, names[0]: inner})


CHAT_WORDS = ChoiceWords(name=("function", "name"), allowed=("allowed_tools",))


def check_function_call(value: Any) -> ToolChoice:
    """The older form: a mode, or a function's name in an object."""
    if value in ("none", "auto"):
        return ToolChoice(value)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise wrong(f'must be "none", "auto" or an object with the name of a function, got {shown(value)}')
    return ToolChoice("required", (name,), once=True)


def check_arguments(value: Any) -> str | dict[str, Any]:
    """A call's arguments: JSON text, as OpenAI has it, or the object itself."""
    if not isinstance(value, str | dict):
        raise wrong(f"must be a string, got {shown(value)}")
    return value


_NAMED = _object({"name": {"type": "string"}})

Choice = Annotated[
    ToolChoice,
    PlainValidator(CHAT_WORDS.check),
    WithJsonSchema(CHAT_WORDS.schema()),
]
FunctionChoice = Annotated[
    ToolChoice,
    PlainValidator(check_function_call),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto"]}, _NAMED]}),
]
Arguments = Annotated[
    str | dict[str, Any],
    PlainValidator(check_arguments),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]}),
]


class PastFunction(Body):
    """What was called."""

    name: str
    arguments: Arguments = Field("", description="JSON text.")


class PastCall(Body):
    """A call of an earlier turn."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"cache_control", "index"})
    NESTED: ClassVar[dict[str, type[Body]]] = {"function": PastFunction}

    id: str = ""
    type: Literal["function"] = "function"
    function: PastFunction
