"""A run as arrays, from which every figure of a report is computed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, nextafter
from typing import TypeVar

import numpy as np

from loadtest.report.events import Events, Flags, Floats, Names
from loadtest.report.records import LoadRun, Objective, RequestRecord
from loadtest.report.token_times import tokens_in

Item = TypeVar("Item")

# Key of a record's server-side timing -> its name in a report.
SERVER_TIMINGS = {"queue_ms": "queue", "prefill_ms": "prefill", "decode_ms": "decode"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The records of a run by column. Times and durations are in seconds; NaN if something did not happen.

    The arrays have shape [requests], in the order of `LoadRun.records`.

    Attributes:
        klass: its class.
        awaited: whether somebody waited for its complete answer.
        whole: whether the complete answer came.
        judged: whether an objective applies to it.
        needed: the factor by which its objective would have to be loosened to be met: `<= 1` if it is met, infinity for a
            request that failed or broke a rule, NaN if no objective applies.
        ended: when it ended or, if it failed, the last time known of it.
        first: when its first token came.
        timings: name in a report -> durations by the server itself.
        prompt, output, cached: tokens; prompt by `usage`, output by `usage` or else counted.
        events: when text came in each answer.
    """

    klass: Names
    awaited: Flags
    whole: Flags
    judged: Flags
    needed: Floats
    intended: Floats
    lateness: Floats
    first: Floats
    ended: Floats
    ttft: Floats
    tpot: Floats
    e2e: Floats
    timings: dict[str, Floats]
    prompt: Floats
    output: Floats
    cached: Floats
    events: Events

    @property
    def failed(self) -> Flags:
        """Whether no complete answer came though somebody waited for it."""
        return self.awaited & ~self.whole

    @classmethod
    def of(cls, run: LoadRun) -> "Columns":
        """Read every record of `run` into arrays."""
        records = run.records
        objectives = [run.objective(record) for record in records]
        return cls(
            klass=np.array([record.klass for record in records], dtype=np.str_),
            awaited=np.array([record.awaited for record in records], dtype=np.bool_),
            whole=np.array([record.ok for record in records], dtype=np.bool_),
            judged=np.array([objective is not None for objective in objectives], dtype=np.bool_),
            needed=_column(zip(records, objectives, strict=True), lambda pair: needed(*pair)),
            intended=_column(records, lambda record: record.intended),
            lateness=_column(
                records, lambda record: record.sent - record.intended if record.sent is not None else None
            ),
            first=_column(records, lambda record: record.tokens[0][0] if record.tokens else None),
            ended=_column(records, last_known),
            ttft=_column(records, lambda record: record.ttft),
            tpot=_column(records, lambda record: record.tpot),
            e2e=_column(records, lambda record: record.e2e),
            timings={name: _column(records, _timing(key)) for key, name in SERVER_TIMINGS.items()},
            prompt=_column(records, lambda record: record.prompt_tokens),
            output=_column(records, output_tokens),
            cached=_column(records, lambda record: record.cached_tokens),
            events=Events([record.tokens for record in records]),
        )


def concurrency(start: Floats, end: Floats, chosen: Flags | None = None) -> tuple[Floats, Floats]:
    """How many intervals [start, end) overlap over time: the times of change in order, and the count from each on."""
    if chosen is not None:
        start, end = start[chosen], end[chosen]
    times = np.concatenate([start, end])
    steps = np.concatenate([np.ones(start.size), -np.ones(end.size)])
    order = np.lexsort((steps, times))  # at one instant an end comes before a start
    return times[order], np.cumsum(steps[order])


def needed(record: RequestRecord, objective: Objective | None) -> float | None:
    """The factor by which to multiply all of `objective`'s bounds so that `record` just meets it; None without an objective.

    `needed(record, objective) <= 1` if and only if `objective.met_by(record)`.
    """
    if objective is None:
        return None
    if not record.ok or record.violations:
        return inf
    pairs = ((objective.ttft, record.ttft), (objective.tpot, record.tpot), (objective.e2e, record.e2e))
    return max((ratio(value, bound) for bound, value in pairs if bound is not None and value is not None), default=0.0)


def ratio(value: float, bound: float) -> float:
    """`value / bound`; above 1 exactly where `value` is above `bound`, and nothing above 0 meets a bound of 0."""
    if bound == 0:
        return inf if value > 0 else 0.0
    return value / bound if value <= bound else max(value / bound, nextafter(1, inf))


def output_tokens(record: RequestRecord) -> int:
    """The answer's tokens: by the server's usage, else counted."""
    return tokens_in(record.tokens) if record.output_tokens is None else record.output_tokens


def last_known(record: RequestRecord) -> float:
    """When it ended or, if it never did, the last time known of it, in seconds."""
    last_token = record.tokens[-1][0] if record.tokens else None
    known = (record.finished, last_token, record.headers, record.sent, record.intended)
    return next(at for at in known if at is not None)


def _timing(key: str) -> Callable[[RequestRecord], float | None]:
    def read(record: RequestRecord) -> float | None:
        value = (record.timings or {}).get(key)
        return None if value is None else value / 1000

    return read


def _column(items: Iterable[Item], read: Callable[[Item], float | None]) -> Floats:
    values = (read(item) for item in items)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
