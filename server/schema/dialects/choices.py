"""`tool_choice` in the words of each dialect, checked, and in the words of a chat request."""

from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema

from server.schema.base import wrong
from server.schema.shown import shown
from server.schema.tools import ChoiceWords

Chosen = str | dict[str, Any]  # as the client gave it

_WORDS = ChoiceWords(name=("name",), allowed=())


def check_responses_choice(value: Any) -> Chosen:
    """A mode, a function by its name, or the functions that are allowed; as it was given."""
    _WORDS.check(value)
    given: Chosen = value
    return given


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
    WithJsonSchema(_WORDS.schema()),
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
