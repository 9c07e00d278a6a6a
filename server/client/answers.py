"""What is read of a server's answers. What else they say is passed over; what is of another kind than these is no answer.

The server is anybody's: it may send anything.
"""

import msgspec


class ToldModel(msgspec.Struct):
    """One of `/v1/models`."""

    id: str


class ToldModels(msgspec.Struct):
    """`/v1/models`."""

    data: list[ToldModel]


class ToldTimings(msgspec.Struct):
    """What headrace says of an answer's time."""

    queue_ms: float | None = None
    decode_tokens_per_second: float | None = None


class ToldPromptDetails(msgspec.Struct):
    """Of a prompt's tokens."""

    cached_tokens: int | None = None


class ToldUsage(msgspec.Struct):
    """Tokens of an answer."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: ToldPromptDetails | None = None


class ToldCompletion(msgspec.Struct):
    """Of `/v1/completions`."""

    usage: ToldUsage
    timings: ToldTimings | None = None


class ToldDelta(msgspec.Struct):
    """What an event adds to an answer."""

    content: str | None = None


class ToldChoice(msgspec.Struct):
    """An event's part about one choice."""

    delta: ToldDelta | None = None


class ToldEvent(msgspec.Struct):
    """An event of the stream of `/v1/chat/completions`."""

    choices: list[ToldChoice] | None = None
    usage: ToldUsage | None = None
    timings: ToldTimings | None = None
    error: object = None

    @property
    def text(self) -> str:
        """What the first choice gets by it."""
        delta = self.choices[0].delta if self.choices else None
        return (delta and delta.content) or ""


class ToldVersion(msgspec.Struct):
    """`/version`."""

    version: str | None = None


class ToldState(msgspec.Struct):
    """`/ready` and `/health`."""

    status: str | None = None
    doing: str | None = None
    steps: int | None = None


class ToldEngine(msgspec.Struct):
    """One of `/v1/engines`."""

    id: str
    state: str | None = None
    trouble: str | None = None


class ToldEngines(msgspec.Struct):
    """`/v1/engines`."""

    data: list[ToldEngine]
