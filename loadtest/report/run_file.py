"""A run as a file: JSON with the records as columns, an eighth of the size of a list of objects.

Times are rounded to microseconds. The events of an answer are whole microseconds: the first from the run's start, each further
one from the one before. A column in which every record has the default value is left out.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from loadtest.report.output import write_pieces
from loadtest.report.records import SCHEMA, ErrorClass, LoadRun, Objective, RequestRecord
from loadtest.report.token_times import TokenEvent, TokenTimes

_PLAIN = tuple(each for each in fields(RequestRecord) if each.name not in ("tokens", "timings"))
_TIMES = frozenset(("intended", "sent", "headers", "finished"))
_MICRO = 1_000_000
_TIMES_BEGIN, _TIMES_APART = b'"event_us":[[', b'"event_us":null'
_PIECE = 1 << 20  # bytes of a file that are read together


class RunFileError(ValueError):
    """The file is no run; the message names it and what is wrong."""


def write_run(run: LoadRun, path: Path) -> None:
    """Write a run; the file is whole or not there."""
    content: dict[str, Any] = {"schema": SCHEMA} | _own_fields(run)
    content["objectives"] = {name: _own_fields(bounds) for name, bounds in run.objectives.items()}
    write_pieces(
        path,
        _object(
            (name, _object(_columns(value)) if name == "records" else [_json(value)]) for name, value in content.items()
        ),
    )


def read_run(path: Path) -> LoadRun:
    """Read what `write_run` wrote; fields that are not known are ignored.

    Raises:
        RunFileError: it is not JSON, has another schema, or lacks something.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    try:
        content, times = _parsed(data)
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{path} is not JSON: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise RunFileError(f"{path} is no run of this version: its schema is {schema!r}, not {SCHEMA!r}")
    try:
        content["records"] = _records(content["records"], times)
        content["objectives"] = {name: Objective(**bounds) for name, bounds in content["objectives"].items()}
        return LoadRun(**{each.name: content[each.name] for each in fields(LoadRun) if each.name in content})
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise RunFileError(f"{path} is no whole run: {type(error).__name__}: {error}") from None


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _object(members: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """An object that is not empty, from names and the pieces of their values."""
    before = "{"
    for name, pieces in members:
        yield f"{before}{_json(name)}:"
        yield from pieces
        before = ","
    yield "}"


def _columns(records: Sequence[RequestRecord]) -> Iterator[tuple[str, Iterable[str]]]:
    for each in _PLAIN:
        values = [getattr(record, each.name) for record in records]
        if each.name in _TIMES:
            values = [None if value is None else round(value, 6) for value in values]
        default = [] if each.name == "violations" else each.default
        if default is MISSING or any(value != default for value in values):
            yield each.name, [_json(values)]
    yield "event_us", _event_times(records)
    yield "event_tokens", [_json([_counts(record.tokens) for record in records])]
    told = {name for record in records for name in record.timings or ()}
    if told:
        yield "timings", [_json({name: [_timing(record, name) for record in records] for name in sorted(told)})]


def _event_times(records: Sequence[RequestRecord]) -> Iterator[str]:
    """A list of lists, some of them at a time: as text and numbers of Python all events are several times as large as in records.

    Raises:
        FloatingPointError: a time is no number of microseconds.
    """
    import numpy as np  # which a client under load does not import

    from loadtest.report.events import Events

    before = "["
    for piece in Events([record.tokens for record in records]).pieces():
        with np.errstate(invalid="raise"):
            micros = np.rint(piece.at * _MICRO).astype(np.int64)
        steps = np.where(piece.later, np.diff(micros, prepend=0), micros).tolist()
        ends = accumulate(piece.lengths.tolist(), initial=0)
        yield before + _json([steps[begin:end] for begin, end in pairwise(ends)])[1:-1]
        before = ","
    yield "]" if records else "[]"


def _counts(events: Sequence[TokenEvent]) -> int | list[int]:
    """A list, or the number that they all are."""
    counts = TokenTimes.of(events).counts or [1]
    return [*counts] if len(set(counts)) > 1 else counts[0]


def _timing(record: RequestRecord, name: str) -> float | None:
    value = (record.timings or {}).get(name)
    return None if value is None else round(value, 3)


def _parsed(data: bytes) -> tuple[Any, Iterator[list[int]] | None]:
    """What is in a file, and apart from it the events' times, which `write_run` has written without spaces; None: they are in it.

    Raises:
        ValueError, RecursionError: it is not JSON.
    """
    begin = data.find(_TIMES_BEGIN)  # not inside a text, where quotes are escaped
    end = data.find(b"]]", begin)
    if begin < 0 or end < 0:
        return json.loads(data.decode("utf-8")), None
    content = json.loads((data[:begin] + _TIMES_APART + data[end + 2 :]).decode("utf-8"))
    return content, _lists(data, begin + len(_TIMES_BEGIN) - 1, end)


def _lists(data: bytes, begin: int, end: int) -> Iterator[list[int]]:
    """The lists from the first one's bracket to that which ends the last: all at once they would take 40 bytes for each number."""
    while begin < end:
        last = data.find(b"],[", begin + _PIECE, end)
        last = end if last < 0 else last
        yield from json.loads(b"[" + data[begin : last + 1] + b"]")
        begin = last + 2


def _records(columns: dict[str, Any], times: Iterator[list[int]] | None) -> list[RequestRecord]:
    plain = {each.name: columns[each.name] for each in _PLAIN if each.name in columns}
    timings: dict[str, list[float | None]] = columns.get("timings", {})
    found = []
    events = columns["event_us"] if times is None else times, columns["event_tokens"]
    for place, row in enumerate(zip(*plain.values(), *events, strict=True)):
        known = dict(zip(plain, row, strict=False))
        known["tokens"] = _tokens(*row[-2:])
        told = {name: value for name, values in timings.items() if (value := values[place]) is not None}
        known["timings"] = told or None
        known["error"] = known.get("error") and ErrorClass(known["error"])
        found.append(RequestRecord(**known))
    return found


def _tokens(gaps: Sequence[int], counts: int | Sequence[int]) -> TokenTimes:
    at = [time / _MICRO for time in accumulate(gaps)]
    if counts == 1:
        return TokenTimes(at)
    return TokenTimes(at, [counts] * len(at) if isinstance(counts, int) else counts)


def _own_fields(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}
