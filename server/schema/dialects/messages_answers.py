"""The JSON of Anthropic's answers. It is written by hand; a test holds what is written against these."""

from typing import Any, Literal

from pydantic import Field

from server.schema.answers import AnswerBody, ErrorDetail

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class AnswerTextBlock(AnswerBody):
    """What the assistant says."""

    type: Literal["text"]
    text: str


class AnswerThoughtBlock(AnswerBody):
    """What the model thought first."""

    type: Literal["thinking"]
    thinking: str
    signature: str = Field(description="Not checked when it comes back.")


class AnswerToolUseBlock(AnswerBody):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(AnswerBody):
    """Token counts. The prompt has `input_tokens` and `cache_read_input_tokens` together."""

    input_tokens: int = Field(description="Of the prompt, as many as were computed.")
    cache_creation_input_tokens: int = Field(description="0: prefixes are cached as they are computed.")
    cache_read_input_tokens: int = Field(description="Of the prompt, as many as the prefix cache had.")
    output_tokens: int


class MessageAnswer(AnswerBody):
    """The answer of `/v1/messages`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerTextBlock | AnswerThoughtBlock | AnswerToolUseBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage


class TokenCountAnswer(AnswerBody):
    """The answer of `/v1/messages/count_tokens`."""

    input_tokens: int


class MessagesErrorAnswer(AnswerBody):
    """Every answer of these endpoints with a status of 400 or above. `param` and `code` of the error are extensions."""

    type: Literal["error"]
    error: ErrorDetail
    request_id: str = Field(description="Also in the header `x-request-id`.")
