"""The JSON of `GET /v1/requests/{id}`: what happened to one request. Times are milliseconds since it was received."""

from typing import Literal

from pydantic import Field

from server.schema.answers import AnswerBody


class WaitStory(AnswerBody):
    """A time in an engine's queue."""

    cause: str
    since_ms: float
    until_ms: float
    behind: str | None = Field(description="The request that stood first in line, or that computed a shared prefix.")
    lacking_blocks: int
    running: int
    holders: list[str] = Field(description="Running requests with the most KV blocks, where blocks were missing.")


class ChunkStory(AnswerBody):
    """Tokens of the prompt, and the step that computed them."""

    step: int
    start: int
    tokens: int
    planned_ms: float
    ended_ms: float | None
    step_tokens: int
    step_ms: float


class PreemptionStory(AnswerBody):
    """It lost its blocks to another request."""

    at_ms: float
    by: str
    lost_tokens: int
    saved: bool
    resumed_ms: float | None


class LoadStory(AnswerBody):
    """KV blocks that came from a tier below the device."""

    since_ms: float
    until_ms: float | None
    blocks: int
    tiers: list[str]
    whole: bool


class EngineStory(AnswerBody):
    """What one engine says of a sequence."""

    engine: str
    queued_ms: float
    scheduled_ms: float
    first_token_ms: float | None
    finished_ms: float | None
    found_tokens: int = Field(description="Of its prefix, on the device when it started.")
    waits: list[WaitStory]
    chunks: list[ChunkStory]
    more_chunks: int
    preemptions: list[PreemptionStory]
    loads: list[LoadStory]


class MissStory(AnswerBody):
    """Why part of the prompt was not found in the KV cache."""

    cause: str
    tokens: int = Field(description="Not found, in whole blocks.")
    lost_tokens: int = Field(description="Of these, those that would have been found but for the cause.")
    nearest: str | None = Field(description="The earlier request of the same tenant with the most tokens in common.")
    position: int | None = Field(description="Of the first token that differs from it.")
    text_here: str | None = None
    text_there: str | None = None


class SequenceStory(AnswerBody):
    """One choice."""

    index: int
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    preemptions: int
    replays: int
    timings: dict[str, float]
    miss: MissStory | None
    engines: list[EngineStory]


class RequestStory(AnswerBody):
    """What happened to one request."""

    summary: list[str] = Field(description="All that matters, in sentences.")
    id: str
    object: Literal["request"] = "request"
    request_id: str
    tenant: str
    model: str
    created: int
    open: bool
    sequences: list[SequenceStory]
