"""Items of a response, and the messages of a chat that say the same."""

from collections.abc import Iterable
from typing import Any

from server.api.dialects.parts import AnswerPart, PartKind
from server.api.dialects.translation import chat_content
from server.errors import InvalidRequest
from server.schema.base import Body
from server.schema.dialects.responses_items import (
    ITEMS,
    CallItem,
    CallOutputItem,
    InputMessage,
    ReasoningItem,
    RefusalPart,
    unsealed_text,
)

ChatMessage = dict[str, Any]


def messages_of(items: Iterable[Body]) -> list[ChatMessage]:
    """The messages of a chat that these items are: thoughts, a text and calls in a row are one message of the assistant.

    Raises:
        InvalidRequest: there is none in them.
    """
    messages: list[ChatMessage] = []
    for item in items:
        match item:
            case ReasoningItem():
                if thought := _thought(item):
                    _add_thought(messages, thought)
            case CallItem():
                _add_call(messages, item)
            case CallOutputItem():
                texts = [part.text for part in item.output]
                messages.append({"role": "tool", "tool_call_id": item.call_id, "content": chat_content(texts)})
            case InputMessage():
                _add_message(messages, item)
    if not messages:
        told = "must hold something that the model can read, got only reasoning without its text"
        raise InvalidRequest(f"`input` {told}", param="input")
    for message in messages:
        if "reasoning_content" in message:
            # Once, however many thoughts there were.
            message["reasoning_content"] = "".join(message["reasoning_content"])
    return messages


def _thought(item: ReasoningItem) -> str:
    sealed = "" if item.encrypted_content is None else unsealed_text(item.encrypted_content)
    return "".join(each.text for each in item.content) or sealed or "\n\n".join(each.text for each in item.summary)


def _add_thought(messages: list[ChatMessage], thought: str) -> None:
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or last["content"] or last.get("tool_calls"):
        messages.append({"role": "assistant", "content": ""})
    messages[-1].setdefault("reasoning_content", []).append(thought)


def _add_call(messages: list[ChatMessage], item: CallItem) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    function = {"name": item.name, "arguments": item.arguments}
    messages[-1].setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": function})


def _add_message(messages: list[ChatMessage], item: InputMessage) -> None:
    content = chat_content([part.refusal if isinstance(part, RefusalPart) else part.text for part in item.content])
    last = messages[-1] if messages else {}
    only_thought = "reasoning_content" in last and not last["content"] and not last.get("tool_calls")
    if item.role == "assistant" and only_thought:
        last["content"] = content
    else:
        messages.append({"role": item.role, "content": content})


def item_of(part: AnswerPart) -> Body:
    """A part of an answer, as it goes into the next response."""
    match part.kind:
        case PartKind.REASONING:
            content = [{"type": "reasoning_text", "text": part.text}]
            return ITEMS.validate({"type": "reasoning", "content": content})
        case PartKind.CALL:
            call = {"call_id": part.call_id, "name": part.name, "arguments": part.text}
            return ITEMS.validate({"type": "function_call", **call})
        case PartKind.TEXT:
            content = [{"type": "output_text", "text": part.text}]
            return ITEMS.validate({"role": "assistant", "content": content})
