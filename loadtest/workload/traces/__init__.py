"""Traces of real traffic, read into one form."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        line: of the file, from 1.
        arrival: seconds from the trace's first request.
        prompt_tokens: at least 1.
        output_tokens: at least 1.
        klass: the trace's model or log type; `default`.
        session: the conversation it belongs to; requests of one session extend their own history.
        blocks: ids of the prompt's consecutive parts of `block_tokens` tokens; equal ids stand for equal text.
        block_tokens: 0 without `blocks`.
        prompt: the text itself, where the trace has it; then `prompt_tokens` is 0.
    """

    line: int
    arrival: float
    prompt_tokens: int
    output_tokens: int
    klass: str = "default"
    session: str | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    prompt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace: `requests` by arrival, and what was left out.

    `tick` is the resolution of its stamps in seconds (1 for whole seconds), inside which arrivals may be spread.
    `timed` is false where the format has no times; every arrival is 0 then.
    """

    name: str
    format: str
    requests: list[TraceRequest]
    tick: float = 0.0
    timed: bool = True
    problems: list[str] = field(default_factory=list)
