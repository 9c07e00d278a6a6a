"""Traces of real traffic, read into one form."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a trace.

    Attributes:
        line: of the file, from 1.
        arrival: seconds from the trace's first request.
        prompt_tokens: at least 1; 0 if `prompt` is given.
        output_tokens: at least 1.
        klass: the model or log type that the trace names, else the tenant, else `default`.
        tenant: on whose account it runs; None if the trace does not say.
        priority: lower ones run first.
        session: the conversation it belongs to; each request of a session extends the ones before it.
        blocks: ids of the prompt's consecutive parts of `block_tokens` tokens; equal ids stand for equal text.
        block_tokens: 0 without `blocks`.
        prompt: the text itself, if the trace has it.
    """

    line: int
    arrival: float
    prompt_tokens: int
    output_tokens: int
    klass: str = "default"
    tenant: str | None = None
    priority: int = 0
    session: str | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not replayed: its line, from 1, and what is said of it, with file and line."""

    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace: its requests by arrival, and what was left out.

    Attributes:
        tick: the resolution of its stamps in seconds (1 for whole seconds), inside which arrivals may be spread.
        timed: false if the format has no times; every arrival is then 0.
        problems: the rows left out, by line.
    """

    name: str
    format: str
    requests: list[TraceRequest]
    tick: float = 0.0
    timed: bool = True
    problems: list[LeftOut] = field(default_factory=list)
