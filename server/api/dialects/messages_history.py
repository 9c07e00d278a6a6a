"""A message of Anthropic's API, and the messages of a chat that say the same."""

import json
from typing import Any

from server.api.dialects.translation import chat_content
from server.errors import InvalidRequest
from server.schema.dialects.messages import (
    ConversationMessage,
    HiddenThoughtBlock,
    TextBlock,
    ThoughtBlock,
    ToolResultBlock,
    ToolUseBlock,
)

ChatMessage = dict[str, Any]


def chat_messages(message: ConversationMessage, param: str) -> list[ChatMessage]:
    """The messages of a chat: results of calls are messages of their own there.

    Args:
        message: of Anthropic's API.
        param: its path, for refusals.

    Raises:
        InvalidRequest: it has a block that only the assistant's messages may have.
    """
    if message.role == "assistant":
        return [_assistants(message)]
    told: list[ChatMessage] = []
    texts: list[str] = []
    for number, block in enumerate(message.content):
        if isinstance(block, ToolResultBlock):
            if texts:
                told.append({"role": message.role, "content": chat_content(texts)})
            texts = []
            result = chat_content([each.text for each in block.content])
            told.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": result})
        elif isinstance(block, TextBlock):
            texts.append(block.text)
        else:
            where = f"{param}.content[{number}]"
            raise InvalidRequest(
                f"`{where}` must be text or a tool_result with role {message.role!r}, got {block.type}", param=where
            )
    if texts or not told:
        told.append({"role": message.role, "content": chat_content(texts)})
    return told


def _assistants(message: ConversationMessage) -> ChatMessage:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in message.content:
        match block:
            case TextBlock():
                texts.append(block.text)
            case ThoughtBlock():
                thoughts.append(block.thinking)
            case ToolUseBlock():
                function = {"name": block.name, "arguments": json.dumps(block.input, ensure_ascii=False)}
                calls.append({"id": block.id, "type": "function", "function": function})
            case HiddenThoughtBlock() | ToolResultBlock():
                pass
    told: ChatMessage = {"role": "assistant", "content": chat_content(texts)}
    if thoughts:
        told["reasoning_content"] = "\n\n".join(thoughts)
    if calls:
        told["tool_calls"] = calls
    return told
