"""What a chat template makes of tools, found out by showing it some, and what stands in where it leaves them out.

Templates differ in all of it: whether they show tools at all, whether a past call's arguments are an object or its JSON text,
whether a message that only calls has an empty content or none, whether results of tools have a role. What a template does not
show is told the model in words: tools in the system's message, calls and results as text, in the form that most models know.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from server.text.chat_template import ChatTemplate, TemplateError

Message = Mapping[str, Any]
Tool = Mapping[str, Any]

_MARK = "7401938265"  # digits, as templates change the case and split at words
_NAME, _FIELD, _ABOUT, _CALLED, _KEY, _VALUE, _RESULT = (f"t{_MARK}{i}" for i in range(7))
_PARAMETERS = {"type": "object", "properties": {_FIELD: {"type": "string"}}, "required": [_FIELD]}
_TOOL: Tool = {"type": "function", "function": {"name": _NAME, "description": _ABOUT, "parameters": _PARAMETERS}}
_ID = "abcdefghi"  # some take ids of nine characters only
_INTRODUCTION = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class ToolShapes:
    """What one template takes of tools. It is tried when the first conversation with tools is met.

    Args:
        template: the chat template.
        takes_system: whether it shows a message of the system.
    """

    def __init__(self, template: ChatTemplate, takes_system: bool) -> None:
        self._template = template
        self._takes_system = takes_system

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the tools that are offered appear in a prompt."""
        text = self._rendered([{"role": "user", "content": "a"}])
        return all(mark in text for mark in (_NAME, _FIELD, _ABOUT))

    @cached_property
    def _calls(self) -> tuple[Literal["object", "text"], str | None] | None:
        """How a past call's arguments and its empty content are handed over so that call and result appear."""
        for arguments in ("object", "text"):
            for empty in ("", None):
                call = _handed_over(_past_call(), arguments)
                messages: list[dict[str, Any]] = [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": empty, "tool_calls": [call]},
                    {"role": "tool", "content": _RESULT, "tool_call_id": _ID, "name": _CALLED},
                    {"role": "user", "content": "b"},
                ]
                text = self._rendered(messages)
                as_python = f"'{_KEY}'"  # an object that the template only writes out
                if all(mark in text for mark in (_CALLED, _KEY, _VALUE, _RESULT)) and as_python not in text:
                    return arguments, empty
        return None

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        try:
            return self._template.render(messages, tools=[_TOOL])
        except TemplateError:
            return ""

    def shaped(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[dict[str, Any]]:
        """The conversation as the template takes it, with the tools in words if it does not show them."""
        shaped = [dict(message) for message in messages]
        if any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
            shaped = list(self._in_words(shaped)) if self._calls is None else [self._natively(each) for each in shaped]
        if tools and not self.shows_tools:
            shaped = self._introduced(shaped, tools)
        return shaped

    def _natively(self, message: dict[str, Any]) -> dict[str, Any]:
        if not message.get("tool_calls") or self._calls is None:
            return message
        arguments, empty = self._calls
        calls = [_handed_over(call, arguments) for call in message["tool_calls"]]
        return {**message, "content": message["content"] or empty, "tool_calls": calls}

    def _in_words(self, messages: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        results: list[str] = []
        for message in messages:
            if message["role"] == "tool":
                results.append(f"<tool_response>\n{_text(message['content'])}\n</tool_response>")
                continue
            if results:
                yield {"role": "user", "content": "\n".join(results)}
                results = []
            calls = message.pop("tool_calls", ())
            written = [f"<tool_call>\n{_json_of(call['function'])}\n</tool_call>" for call in calls]
            if written:
                said = [_text(message["content"])] if message["content"] else []
                message["content"] = "\n".join([*said, *written])
            yield message
        if results:
            yield {"role": "user", "content": "\n".join(results)}

    def _introduced(self, messages: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        text = _INTRODUCTION.format(tools=listed)
        role = "system" if self._takes_system else "user"
        first = next((i for i, message in enumerate(messages) if message["role"] == role), None)
        if first is None:
            return [{"role": role, "content": text}, *messages]
        said = messages[first]["content"]
        content = f"{said}\n\n{text}" if isinstance(said, str) else [*said, f"\n\n{text}"]
        return [*messages[:first], {**messages[first], "content": content}, *messages[first + 1 :]]


def _past_call() -> dict[str, Any]:
    return {"id": _ID, "type": "function", "function": {"name": _CALLED, "arguments": {_KEY: _VALUE}}}


def _handed_over(call: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    """The call with its arguments as an object, as far as they are one, or as JSON text."""
    function = dict(call["function"])
    given = function["arguments"]
    if arguments == "object":
        function["arguments"] = object_of(given)
    elif not isinstance(given, str):
        function["arguments"] = json.dumps(given, ensure_ascii=False)
    return {**call, "function": function}


def object_of(arguments: str | dict[str, Any]) -> str | dict[str, Any]:
    """A call's arguments as an object; as they are if they are none that a text can hold.

    They may be of an answer that was cut off, or have half a surrogate pair as an escape, which has no UTF-8.
    """
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _json_of(function: Mapping[str, Any]) -> str:
    call = {"name": function["name"], "arguments": object_of(function["arguments"])}
    return json.dumps(call, ensure_ascii=False)


def _text(content: str | list[str]) -> str:
    return content if isinstance(content, str) else "".join(content)
