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


_MODES = ("none", "auto", "required")


def check_tool_choice(value: Any) -> ToolChoice:
    """A mode, a function's name in an object, or the functions that are allowed."""
    if isinstance(value, str):
        if value not in _MODES:
            raise wrong(f'must be "none", "auto", "required" or an object, got {shown(value)}')
        return ToolChoice(value)  # type: ignore[arg-type]  # mypy does not narrow by a tuple
    if not isinstance(value, dict):
        raise wrong(f"must be a string or an object, got {shown(value)}")
    if value.get("type") == "function":
        return ToolChoice("required", (_function_name(value, ""),), once=True)
    if value.get("type") != "allowed_tools":
        raise wrong(f'must be "function" or "allowed_tools", got {shown(value.get("type"))}', ".type")
    allowed = value.get("allowed_tools")
    if not isinstance(allowed, dict):
        raise wrong(f"must be an object, got {shown(allowed)}", ".allowed_tools")
    mode, tools = allowed.get("mode"), allowed.get("tools")
    if mode not in ("auto", "required"):
        raise wrong(f'must be "auto" or "required", got {shown(mode)}', ".allowed_tools.mode")
    if not isinstance(tools, list) or not tools:
        raise wrong(f"must be an array of at least one tool, got {shown(tools)}", ".allowed_tools.tools")
    names = (_function_name(tool, f".allowed_tools.tools[{i}]") for i, tool in enumerate(tools))
    return ToolChoice(mode, tuple(dict.fromkeys(names)))


def _function_name(value: Any, path: str) -> str:
    if not isinstance(value, dict) or value.get("type") != "function":
        raise wrong(f'must be an object with "type": "function", got {shown(value)}', path)
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise wrong(f"must be the name of a function, got {shown(name)}", f"{path}.function.name")
    return name


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


_NAMED = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
_FUNCTION = {
    "type": "object",
    "properties": {"type": {"enum": ["function"]}, "function": _NAMED},
    "required": ["type", "function"],
}
_ALLOWED = {
    "type": "object",
    "properties": {
        "type": {"enum": ["allowed_tools"]},
        "allowed_tools": {
            "type": "object",
            "properties": {
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _FUNCTION, "minItems": 1},
            },
            "required": ["mode", "tools"],
        },
    },
    "required": ["type", "allowed_tools"],
}

Choice = Annotated[
    ToolChoice,
    PlainValidator(check_tool_choice),
    WithJsonSchema({"anyOf": [{"enum": list(_MODES)}, _FUNCTION, _ALLOWED]}),
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
