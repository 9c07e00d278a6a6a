"""From a trace to what is sent, and when: window, limit, scaling of lengths and times, arrivals. Nothing here knows a server."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, islice, takewhile
from random import Random
from typing import Any

from loadtest.workload.arrivals import ArrivalError, Arrivals, Closed, spread
from loadtest.workload.traces import Trace, TraceRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One request to send.

    Attributes:
        index: from 0, in the order of `intended`.
        intended: when to send it, in seconds from the run's start; 0 in a closed loop, where the users decide.
        line: of the trace, from 1.
        The others are those of TraceRequest; `prompt_tokens` is 0 if `prompt` is given.
    """

    index: int
    intended: float
    prompt_tokens: int
    output_tokens: int
    klass: str = "default"
    tenant: str | None = None
    priority: int = 0
    session: str | None = None
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    prompt: str | None = None
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadShape:
    """Which part of a trace is used, and how it arrives.

    Attributes:
        window: start and end (excluded) in seconds from the trace's first request; the run begins at the window's start.
        limit: the largest number of requests.
        speed, duration, rate: at most one of them (`speed` 1 counts as none): that many times faster, or stretched to
            `duration` seconds, or stretched to `rate` requests per second on average. Drawn arrivals end after `duration`
            seconds; they go through the trace as often as needed, each time with fresh texts.
        spread: move each arrival to a random place inside the trace's tick.
        arrivals: drawn ones, or those of users in a closed loop; None for the trace's own times.
        scale: factor on all lengths, blocks included, so that what is shared stays shared.
        max_prompt, max_output: bounds on lengths, in tokens; anything longer is cut.
        warm_up, cool_down: seconds at the beginning and at the end of the arrivals that are sent, and not counted.
        seed: of everything drawn at random.

    Raises:
        ArrivalError: options that exclude each other, or a number that is not positive and finite.
    """

    window: tuple[float, float] | None = None
    limit: int | None = None
    speed: float = 1.0
    duration: float | None = None
    rate: float | None = None
    spread: bool = False
    arrivals: Arrivals | None = None
    scale: float = 1.0
    max_prompt: int | None = None
    max_output: int | None = None
    warm_up: float = 0.0
    cool_down: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        given = [self.speed != 1.0, self.duration is not None, self.rate is not None]
        if self.arrivals is None and sum(given) > 1:
            raise ArrivalError("give one of --speed, --duration and --rate")
        if self.arrivals is not None and self.speed != 1.0:
            raise ArrivalError("--speed is for the trace's own times; drawn arrivals have a --rate")
        if isinstance(self.arrivals, Closed) and self.rate is not None:
            raise ArrivalError("a closed loop has no --rate: its users send when they are answered")
        for name in ("speed", "duration", "rate", "scale", "limit", "max_prompt", "max_output"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ArrivalError(f"{name} must be positive and finite")

    def described(self) -> dict[str, Any]:
        """These options as JSON values, for a run's `plan` entry."""
        kind = type(self.arrivals).__name__.lower() if self.arrivals else "trace"
        window = self.window and [None if bound == float("inf") else bound for bound in self.window]
        arrivals = {"kind": kind} | (asdict(self.arrivals) if self.arrivals else {})
        return asdict(self) | {"window": window, "arrivals": arrivals}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything to send, in order. In a closed loop, `closed` describes the users and `duration` says when they stop sending.

    Attributes:
        requests: in the order of `intended`.
        described: the trace and the shape as JSON values.
        problems: what was left out of the trace, a sentence for each.
    """

    requests: list[Planned]
    closed: Closed | None = None
    duration: float | None = None
    described: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def make_plan(trace: Trace, shape: LoadShape | None = None) -> Plan:
    """Plan a run over `trace`. The same arguments give the same plan.

    Raises:
        ArrivalError: the window holds no request, or the trace has no times and none are drawn.
    """
    shape = shape or LoadShape()
    start, selected = _selected(trace, shape)
    requests = [_sized(request, shape) for request in selected]
    closed = shape.arrivals if isinstance(shape.arrivals, Closed) else None
    if closed is not None:
        times = [0.0] * (shape.limit or len(requests))
        requests = list(islice(_cycled(requests), len(times)))
    elif shape.arrivals is not None:
        times = _drawn(shape, len(requests))
        requests = list(islice(_cycled(requests), len(times)))
    else:
        times = _own_times(trace, shape, start, requests)
    if closed is None and not any(shape.warm_up <= at <= times[-1] - shape.cool_down for at in times):
        raise ArrivalError(f"nothing is left between --warm-up {shape.warm_up:g} and --cool-down {shape.cool_down:g} s")
    return Plan(
        requests=[_planned(index, *pair) for index, pair in enumerate(zip(times, requests, strict=True))],
        closed=closed,
        duration=shape.duration if closed else None,
        described={"trace": trace.name, "format": trace.format, **shape.described()},
        problems=_left_out(trace, shape, selected),
    )


def _selected(trace: Trace, shape: LoadShape) -> tuple[float, list[TraceRequest]]:
    """Where the window starts, and its requests."""
    begin, end = shape.window or (0.0, float("inf"))
    inside = [request for request in trace.requests if begin <= request.arrival < end]
    if not inside:
        last = trace.requests[-1].arrival
        raise ArrivalError(
            f"no request arrives between {begin:g} and {end:g} s; {trace.name} goes from 0 to {last:g} s (--window)"
        )
    return begin, inside[: shape.limit]


def _left_out(trace: Trace, shape: LoadShape, selected: Sequence[TraceRequest]) -> list[str]:
    """What is said of the rows left out between the first and the last row that is used; a row that cannot be read has no time."""
    lines = [request.line for request in selected]
    begin, end = shape.window or (0.0, float("inf"))
    first = 0 if begin == 0 else min(lines)
    last = float("inf") if end == float("inf") and shape.limit is None else max(lines)
    return [row.text for row in trace.problems if first <= row.line <= last]


def _own_times(trace: Trace, shape: LoadShape, start: float, requests: Sequence[TraceRequest]) -> list[float]:
    if not trace.timed:
        raise ArrivalError(f"{trace.name} ({trace.format}) has no times: draw them, such as --arrivals poisson:rate=5")
    times = [request.arrival - start for request in requests]
    if shape.spread:
        times = spread(times, trace.tick, Random(f"{shape.seed} spread"))
    speed = shape.speed
    span = times[-1]
    if shape.duration is not None or shape.rate is not None:
        if span <= 0:
            raise ArrivalError("all these requests arrive at once, so their times cannot be stretched")
        speed = span / (shape.duration or (len(times) - 1) / (shape.rate or 1.0))
    return [at / speed for at in times]


def _drawn(shape: LoadShape, many: int) -> list[float]:
    assert shape.arrivals is not None and not isinstance(shape.arrivals, Closed)
    process = shape.arrivals if shape.rate is None else shape.arrivals.with_rate(shape.rate)
    times = process.times(Random(f"{shape.seed} arrivals"))
    if shape.duration is None:
        return list(islice(times, shape.limit or many))
    end = shape.duration
    return list(islice(takewhile(lambda at: at < end, times), shape.limit))


def _cycled(requests: Sequence[TraceRequest]) -> Iterator[TraceRequest]:
    """The requests over and over; later rounds share nothing with earlier ones."""
    blocks = 1 + max((block for request in requests for block in request.blocks), default=0)
    for turn in count():
        if turn == 0:
            yield from requests
            continue
        for request in requests:
            yield replace(
                request,
                session=request.session and f"{request.session} #{turn}",
                blocks=tuple(block + turn * blocks for block in request.blocks),
            )


def _sized(request: TraceRequest, shape: LoadShape) -> TraceRequest:
    """Scaled, then bounded."""
    as_it_is = shape.scale == 1 and shape.max_prompt is None and shape.max_output is None
    if as_it_is and request.prompt is None and not request.block_tokens:
        return request
    output = max(1, round(request.output_tokens * shape.scale))
    block = max(1, round(request.block_tokens * shape.scale)) if request.blocks else 0
    prompt = 0
    if request.prompt is None:
        prompt = max(1, round(request.prompt_tokens * shape.scale))
        if block:  # rounding must not move the end into another block
            many = len(request.blocks)
            prompt = min(max(prompt, (many - 1) * block + 1), many * block)
        prompt = min(prompt, shape.max_prompt or prompt)
    return replace(
        request,
        prompt_tokens=prompt,
        output_tokens=min(output, shape.max_output or output),
        blocks=request.blocks[: -(-prompt // block)] if block else (),
        block_tokens=block,
    )


def _planned(index: int, intended: float, request: TraceRequest) -> Planned:
    return Planned(
        index=index,
        intended=intended,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        klass=request.klass,
        tenant=request.tenant,
        priority=request.priority,
        session=request.session,
        blocks=request.blocks,
        block_tokens=request.block_tokens,
        prompt=request.prompt,
        line=request.line,
    )
