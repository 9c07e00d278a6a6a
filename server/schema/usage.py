"""The JSON of `GET /v1/usage`: what keys have used."""

from typing import Literal

from pydantic import Field

from server.schema.answers import AnswerBody


class UsageRow(AnswerBody):
    """What one key used of one model in one hour or day."""

    object: Literal["usage"] = "usage"
    start_time: int = Field(description="Unix seconds, a full hour or day of UTC.")
    end_time: int = Field(description="Where the next one begins.")
    key: str
    model: str | None = Field(description="Null for requests that were refused before they had one.")
    requests: int = Field(description="That ended in this time, without those that were over a limit.")
    errors: int = Field(description="Of these, answered with an error.")
    limited: int = Field(description="Refused for a limit of the key.")
    prompt_tokens: int
    cached_tokens: int = Field(description="Of these, found in the prefix cache.")
    completion_tokens: int = Field(description="Generated, also for clients that left before the end.")


class UsagePage(AnswerBody):
    """Rows by time, then by key and model."""

    object: Literal["list"] = "list"
    data: list[UsageRow]
    has_more: bool
    next_page: str | None = Field(description="For `page`, to go on; null at the end.")
