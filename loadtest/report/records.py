"""What a run leaves behind: one record per request, and the run around them. `loadtest.report.run_file` writes and reads them.

Times are seconds from the run's start on one monotonic clock; `None` means that it did not happen. A field is never renamed or
given another meaning under the same `SCHEMA`; readers ignore fields they do not know.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any

from loadtest.report.token_times import TokenEvent, tokens_in

SCHEMA = "headrace.loadtest/2"
MEASURED = "measured"  # in a run's plan: from when to when its figures are, in seconds of the run; null for its end
_INTERRUPTED = "interrupted"


class ErrorClass(StrEnum):
    """Why a request has no complete answer."""

    CONNECT = "connect"  # no connection
    STATUS = "status"  # an HTTP status other than 200
    UNFIT = "unfit"  # longer than the context: nothing that a server could answer, so it is neither sent nor judged
    LEFT = "left"  # the client left, as the plan wanted it: neither failed nor judged
    STREAM = "stream"  # the stream broke off, or carried an error event
    STALL = "stall"  # the stream began and then fell silent
    TIMEOUT = "timeout"  # the client's patience ended
    CLIENT = "client"  # the client could not build or send it


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """One request of a run.

    Attributes:
        index: place in the plan, from 0.
        klass: the class its objectives belong to (the trace's model or log type; `default`).
        session: the conversation it continues, if any.
        intended: when the plan wanted it sent. Latencies count from here, not from `sent` (coordinated omission).
        sent: when the client sent it; `sent - intended` is the client's lateness.
        tokens: when each event with text came, and how many tokens it brought (usage / events if the server says no more).
        asked_prompt, asked_output: tokens that the plan asked for.
        prompt_tokens, output_tokens, cached_tokens: by the server's `usage`.
        timings: by the server itself, in milliseconds (`queue_ms`, `prefill_ms`, `decode_ms`), if it gives any.
        violations: how the answer breaks the protocol (stream grammar, usage against counted tokens, finish reason).
    """

    index: int
    intended: float
    asked_prompt: int
    asked_output: int
    klass: str = "default"
    session: str | None = None
    sent: float | None = None
    headers: float | None = None
    tokens: Sequence[TokenEvent] = field(default_factory=list)
    finished: float | None = None
    status: int | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    timings: dict[str, float] | None = None
    error: ErrorClass | None = None
    detail: str | None = None
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the complete answer came."""
        return self.error is None and self.finished is not None

    @property
    def fits(self) -> bool:
        """Whether its prompt and its answer fit the context."""
        return self.error is not ErrorClass.UNFIT

    @property
    def awaited(self) -> bool:
        """Whether somebody waited for the complete answer: it fits, and the client did not mean to leave."""
        return self.error not in (ErrorClass.UNFIT, ErrorClass.LEFT)

    @property
    def ttft(self) -> float | None:
        """Seconds from the intended time to the first token."""
        return self.tokens[0][0] - self.intended if self.tokens else None

    @property
    def e2e(self) -> float | None:
        """Seconds from the intended time to the end of the answer."""
        return self.finished - self.intended if self.finished is not None else None

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first event; None if no token came after it."""
        if not self.tokens:
            return None
        (begin, brought), (end, _) = self.tokens[0], self.tokens[-1]
        count = tokens_in(self.tokens) - brought
        return (end - begin) / count if count else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring events (inter-token latency as a reader sees it)."""
        return [after[0] - before[0] for before, after in zip(self.tokens, self.tokens[1:], strict=False)]


def interrupted(ended: int, planned: int) -> str:
    """Why a run that was ended early must not be trusted."""
    return f"{_INTERRUPTED} after {ended} of {planned} requests"


def measured_window(
    warm_up: float, cool_down: float, records: Sequence[RequestRecord]
) -> tuple[float, float | None] | None:
    """From when to when figures are: `warm_up` seconds from the start on, until `cool_down` before the last request was due."""
    if not warm_up and not cool_down:
        return None
    last = max((record.intended for record in records), default=0.0)
    return warm_up, last - cool_down if cool_down else None


def unfit(record: RequestRecord, context: int) -> bool:
    """Whether a request is longer than a context of so many tokens; if so, its record says it."""
    length = record.asked_prompt + record.asked_output
    if length <= context:
        return False
    record.error = ErrorClass.UNFIT
    record.detail = f"{record.asked_prompt} + {record.asked_output} tokens are more than the context of {context}"
    return True


@dataclass(frozen=True, slots=True)
class Objective:
    """A service-level objective, in seconds; None sets no bound."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    def met_by(self, record: RequestRecord) -> bool:
        """Whether `record` is complete, breaks no rule and is within all bounds (goodput counts such requests)."""
        if not record.ok or record.violations:
            return False
        pairs = ((self.ttft, record.ttft), (self.tpot, record.tpot), (self.e2e, record.e2e))
        return all(bound is None or value is None or value <= bound for bound, value in pairs)


@dataclass(slots=True, kw_only=True)
class LoadRun:
    """A run: what was asked of which target, and every request's record.

    Attributes:
        label: its name in reports.
        target: base URL, or `simulation`.
        started: Unix time.
        duration: seconds from the first intended time to the last end.
        plan: trace, format, speed, window, arrivals, seed, limits: all that is needed to repeat the run.
        objectives: by class; `default` for classes without one.
        invalid: why the run must not be trusted (the client could not keep up); empty if it may be.
        problems: rows of the trace that were left out, as `FILE, line N: reason`.
        scraped: the target's counters before and after (`/metrics`), if it has any.
        client: how the client itself did: `lateness_p50`, `lateness_p99`, `lateness_max`, `loop_lag_p99`, `loop_lag_max` in
            seconds, `cpu_share` of one processor, `connections` it opened, `most_running` requests at once.
        server: what its processes used, if that was sampled: `cpu_mean`, `cpu_max` in processors, `memory_max` in bytes, and of
            each GPU `gpuN_busy_mean` as a share and `gpuN_memory_max`.
    """

    label: str
    target: str
    started: float
    duration: float
    plan: dict[str, Any]
    records: list[RequestRecord]
    objectives: dict[str, Objective] = field(default_factory=dict)
    invalid: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    scraped: dict[str, dict[str, float]] = field(default_factory=dict)
    client: dict[str, float] = field(default_factory=dict)
    server: dict[str, float] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended it early."""
        return any(reason.startswith(_INTERRUPTED) for reason in self.invalid)

    @property
    def window(self) -> tuple[float, float]:
        """Seconds of the run from which its figures are: without warm-up and cool-down."""
        begin, end = self.plan.get(MEASURED) or (None, None)
        return (-inf if begin is None else begin, inf if end is None else end)

    def counts(self, record: RequestRecord) -> bool:
        """Whether figures are also those of this request: it was to be sent between warm-up and cool-down."""
        begin, end = self.window
        return begin <= record.intended < end

    @property
    def measured(self) -> "LoadRun":
        """What figures of requests are computed from: the requests that count, and how long they were sent."""
        begin, end = self.window
        if (begin, end) == (-inf, inf):
            return self
        last = max((record.finished or record.intended for record in self.records), default=0.0)
        return replace(
            self, records=[each for each in self.records if self.counts(each)], duration=min(end, last) - begin
        )

    def objective(self, record: RequestRecord) -> Objective | None:
        """The objective that applies to `record`, if any; none to what nobody waited for, or does not count."""
        if not record.awaited or not self.counts(record):
            return None
        return self.objectives.get(record.klass) or self.objectives.get("default")
