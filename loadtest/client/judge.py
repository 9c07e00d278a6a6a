"""From the bytes of an answer to its record: when tokens came, how many were counted, which rules were broken.

Runs after the load, so that reading costs the measurement nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.client.event_stream import StreamEvent, events_of
from loadtest.client.sse_grammar import GrammarError, Kind, StreamValidator
from loadtest.client.streams import StreamedAnswer, StreamReader, error_message, json_value
from loadtest.report.records import ErrorClass, RequestRecord
from loadtest.report.token_times import TokenTimes

_SHOWN = 300  # characters shown of an error's body
_MOST = 1 << 53  # a count beyond this is none, and would not survive a report's arithmetic


@dataclass(frozen=True, slots=True)
class Expected:
    """What an answer is checked against.

    Attributes:
        kind: of stream, which follows from the route.
        own_grammar: whether the stream must follow docs/sse.md to the letter.
        prompt_tokens: the prompt's length; None if unknown.
        output_tokens: the bound that was asked for.
        only_length: whether the answer must reach that bound, with finish reason `length`.
    """

    kind: Kind
    own_grammar: bool
    prompt_tokens: int | None
    output_tokens: int
    only_length: bool


@dataclass(frozen=True, slots=True)
class Raw:
    """The body of an answer; when its pieces arrived (seconds from the run's start) and at which offset each ends."""

    body: bytes
    times: Sequence[float]
    ends: Sequence[int]


def judge(record: RequestRecord, raw: Raw, expected: Expected) -> StreamedAnswer | None:
    """Complete `record` from the answer's body. Returns what the stream said, or None if there is no stream to read."""
    if record.status is None or (record.error is ErrorClass.CONNECT):
        return None
    if record.status != 200:
        record.error = ErrorClass.STATUS
        record.detail = problem_of(raw.body)
        return None
    reader = StreamReader(usage_asked=True)
    events = list(events_of(raw.body, raw.times, raw.ends))
    for event in events:
        if event.data is not None:
            reader.feed(event.at, event.data)
    answer = reader.finish()
    if record.error is None and answer.error is not None:
        record.error, record.detail = ErrorClass.STREAM, answer.error
    if record.error is None and answer.done is None:
        record.error, record.detail = ErrorClass.STREAM, "the stream ends without [DONE]"
    if expected.own_grammar:
        answer.violations = _grammar(events, expected.kind, broken_off=answer.done is None and answer.error is None)
    if answer.done is not None and record.finished is not None:
        record.finished = min(record.finished, answer.done)
    _fill(record, answer)
    record.violations += answer.violations
    if record.error is None:
        record.violations += miscounts(answer, expected)
    return answer


def problem_of(body: bytes) -> str:
    """The message of an error's body, on one line."""
    answer = json_value(body)
    error = answer.get("error") if isinstance(answer, dict) else None
    text = body.decode(errors="replace") if error is None else error_message(error)
    return " ".join(text[:_SHOWN].split())


def _grammar(events: Sequence[StreamEvent], kind: Kind, *, broken_off: bool) -> list[str]:
    """The first rule of docs/sse.md that is broken, if any. That a stream broke off is counted once: as the request's error."""
    validator = StreamValidator(kind=kind, include_usage=True)
    try:
        for event in events:
            if event.whole or not broken_off:
                validator.feed(event.raw)
        if not broken_off:
            validator.finish()
    except GrammarError as error:
        return [error.rule]
    return []


def _fill(record: RequestRecord, answer: StreamedAnswer) -> None:
    usage = answer.usage or {}
    details = usage.get("prompt_tokens_details")
    record.finish_reason = answer.finish_reason
    record.prompt_tokens = count_of(usage.get("prompt_tokens"))
    record.output_tokens = count_of(usage.get("completion_tokens"))
    record.cached_tokens = count_of(details.get("cached_tokens")) if isinstance(details, dict) else None
    if answer.timings is not None:
        record.timings = {name: float(value) for name, value in answer.timings.items() if _is_time(value)}
    times, shares = [at for at, _, _ in answer.texts], _shares(answer, record.output_tokens)
    record.tokens = TokenTimes.of(list(zip(times, shares, strict=True)))


def _shares(answer: StreamedAnswer, total: int | None) -> list[int]:
    """Tokens of each event: by its ids if there are any, else the usage shared out evenly, else one each."""
    many = len(answer.texts)
    if many and all(ids is not None for _, _, ids in answer.texts):
        return [ids or 0 for _, _, ids in answer.texts]
    if total is None or total < many:
        return [1] * many
    return [total * (place + 1) // many - total * place // many for place in range(many)]


def count_of(value: Any) -> int | None:
    """A count of tokens, if it is one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST else None


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def miscounts(answer: StreamedAnswer, expected: Expected) -> list[str]:
    """Where the usage, the stream and the request disagree, a sentence for each, besides the answer's own violations."""
    found: list[str] = []
    usage = answer.usage or {}
    prompt, output = count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))
    total = count_of(usage.get("total_tokens"))
    told = expected.own_grammar and answer.violations  # the grammar's first broken rule may be this one
    if answer.usage is not None and not told and (prompt is None or output is None or total != prompt + output):
        found.append("usage does not add up")
    if prompt is not None and expected.prompt_tokens is not None and prompt != expected.prompt_tokens:
        found.append(f"usage counts {prompt} prompt tokens; the prompt has {expected.prompt_tokens}")
    if output is not None:
        found += _output_miscounts(answer, output, expected)
    reason = answer.finish_reason
    if expected.only_length and reason not in (None, "length"):  # that there is none is told already
        found.append(f"finish reason {reason!r}; with ignore_eos it is 'length'")
    return found


def _output_miscounts(answer: StreamedAnswer, output: int, expected: Expected) -> list[str]:
    found: list[str] = []
    counted = [ids for _, _, ids in answer.texts if ids is not None]
    if counted and len(counted) == len(answer.texts):
        ended = 1 if answer.finish_reason == "stop" else 0  # the end token may be counted and not sent
        if not output - ended <= sum(counted) <= output:
            found.append(f"usage counts {output} output tokens; the stream had {sum(counted)}")
    elif len(answer.texts) > output:
        found.append(f"usage counts {output} output tokens; the stream had {len(answer.texts)} events with text")
    if output > expected.output_tokens:
        found.append(f"{output} output tokens though {expected.output_tokens} were the bound")
    elif answer.finish_reason == "length" and output != expected.output_tokens:
        found.append(f"finish reason 'length' after {output} tokens; the bound was {expected.output_tokens}")
    return found
