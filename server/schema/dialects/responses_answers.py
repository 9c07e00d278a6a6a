"""The JSON of a response. It is written by hand; a test holds what is written against these."""

from typing import Any, Literal

from pydantic import Field

from server.schema.answers import AnswerBody, TokenLogprob


class OutputTextPart(AnswerBody):
    """What the model says."""

    type: Literal["output_text"]
    text: str
    annotations: list[dict[str, Any]]
    logprobs: list[TokenLogprob]


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(AnswerBody):
    """A message of the assistant."""

    id: str
    type: Literal["message"]
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputTextPart]


class AnswerCallItem(AnswerBody):
    """A call of a tool."""

    id: str
    type: Literal["function_call"]
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class AnswerReasoningText(AnswerBody):
    """A thought."""

    type: Literal["reasoning_text"]
    text: str


class AnswerReasoningItem(AnswerBody):
    """What the model thought first."""

    id: str
    type: Literal["reasoning"]
    status: ItemStatus
    summary: list[AnswerReasoningText]
    content: list[AnswerReasoningText]
    encrypted_content: str | None = Field(description="With `include` `reasoning.encrypted_content`.")


class InputItems(AnswerBody):
    """The items that a response was asked with, a page of them."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokenCount(AnswerBody):
    """How many tokens a conversation has."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class DeletedResponse(AnswerBody):
    """A response that is kept no longer."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ResponseFailure(AnswerBody):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(AnswerBody):
    """Why a response ended before its end."""

    reason: Literal["max_output_tokens"]


class InputTokensDetails(AnswerBody):
    """Of the tokens that were read."""

    cached_tokens: int = Field(description="Taken from the prefix cache instead of computed.")
    cache_write_tokens: int = Field(description="0: prefixes are cached as they are computed.")


class OutputTokensDetails(AnswerBody):
    """Of the tokens that were generated."""

    reasoning_tokens: int


class ResponseUsage(AnswerBody):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]


class ResponseAnswer(AnswerBody):
    """The answer of `/v1/responses`. What was not asked for is null."""

    id: str
    object: Literal["response"]
    created_at: int = Field(description="Unix seconds.")
    completed_at: int | None
    status: ResponseStatus
    background: bool
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: list[OutputMessage | AnswerCallItem | AnswerReasoningItem]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    truncation: str
    usage: ResponseUsage | None
    user: str | None
    metadata: dict[str, str]
