"""`tool_choice` in the words of each dialect, checked, and in the words of a chat request."""

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from server.schema.base import wrong
from server.schema.shown import shown

Chosen = str | dict[str, Any]  # as the client gave it

_MODES = ("none", "auto", "required")
_FUNCTION = {
    "type": "object",
    "properties": {"type": {"enum": ["function"]}, "name": {"type": "string"}},
    "required": ["type", "name"],
}
_ALLOWED = {
    "type": "object",
    "properties": {
        "type": {"enum": ["allowed_tools"]},
        "mode": {"enum": ["auto", "required"]},
        "tools": {"type": "array", "items": _FUNCTION, "minItems": 1},
    },
    "required": ["type", "mode", "tools"],
}


def check_responses_choice(value: Any) -> Chosen:
    """A mode, a function by its name, or the functions that are allowed."""
    if isinstance(value, str):
        if value not in _MODES:
            raise wrong(f'must be "none", "auto", "required" or an object, got {shown(value)}')
        return value
    if not isinstance(value, dict):
        raise wrong(f"must be a string or an object, got {shown(value)}")
    if value.get("type") != "allowed_tools":
        _check_function(value, "", '"function" or "allowed_tools"')
        return value
    if value.get("mode") not in ("auto", "required"):
        raise wrong(f'must be "auto" or "required", got {shown(value.get("mode"))}', ".mode")
    tools = value.get("tools")
    if not isinstance(tools, list) or not tools:
        raise wrong(f"must be an array of at least one tool, got {shown(tools)}", ".tools")
    for i, tool in enumerate(tools):
        _check_function(tool, f".tools[{i}]", '"function"')
    return value


def _check_function(value: Any, path: str, kinds: str) -> None:
    if not isinstance(value, dict) or value.get("type") != "function":
        kind = value.get("type") if isinstance(value, dict) else value
        raise wrong(f"must be {kinds}, got {shown(kind)}", f"{path}.type")
    if not isinstance(value.get("name"), str):
        raise wrong(f"must be the name of a function, got {shown(value.get('name'))}", f"{path}.name")


def responses_choice_for_chat(choice: Chosen | None) -> Chosen | None:
    """The `tool_choice` of a chat request that says the same."""
    if choice is None or isinstance(choice, str):
        return choice
    if choice["type"] == "function":
        return _named(choice["name"])
    allowed = {"mode": choice["mode"], "tools": [_named(tool["name"]) for tool in choice["tools"]]}
    return {"type": "allowed_tools", "allowed_tools": allowed}


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


_MESSAGES_MODES = {"auto": "auto", "any": "required", "none": "none"}
_PARALLEL = {"disable_parallel_tool_use": {"type": "boolean"}}


def check_messages_choice(value: Any) -> dict[str, Any]:
    """An object that names a mode, or one tool."""
    if not isinstance(value, dict):
        raise wrong(f"must be an object, got {shown(value)}")
    kind = value.get("type")
    if kind not in (*_MESSAGES_MODES, "tool"):
        raise wrong(f'must be "auto", "any", "tool" or "none", got {shown(kind)}', ".type")
    if kind == "tool" and not isinstance(value.get("name"), str):
        raise wrong(f"must be the name of a tool, got {shown(value.get('name'))}", ".name")
    if not isinstance(value.get("disable_parallel_tool_use", False), bool):
        got = shown(value["disable_parallel_tool_use"])
        raise wrong(f"must be true or false, got {got}", ".disable_parallel_tool_use")
    return value


def messages_choice_for_chat(choice: dict[str, Any] | None) -> dict[str, Any]:
    """The fields of a chat request that say the same."""
    if choice is None:
        return {}
    mode = _MESSAGES_MODES.get(choice["type"])
    chosen = _named(choice["name"]) if mode is None else mode
    return {"tool_choice": chosen, "parallel_tool_calls": not choice.get("disable_parallel_tool_use", False)}


ResponsesToolChoice = Annotated[
    Chosen,
    PlainValidator(check_responses_choice),
    WithJsonSchema({"anyOf": [{"enum": list(_MODES)}, _FUNCTION, _ALLOWED]}),
]
MessagesToolChoice = Annotated[
    dict[str, Any],
    PlainValidator(check_messages_choice),
    WithJsonSchema(
        {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"type": {"enum": list(_MESSAGES_MODES)}, **_PARALLEL},
                    "required": ["type"],
                },
                {
                    "type": "object",
                    "properties": {"type": {"enum": ["tool"]}, "name": {"type": "string"}, **_PARALLEL},
                    "required": ["type", "name"],
                },
            ]
        }
    ),
]
