"""A run as a file: JSON with the records as columns, an eighth of the size of a list of objects.

Times are rounded to microseconds. The events of an answer are whole microseconds: the first from the run's start, each further
one from the one before. A column in which every record has the default value is left out.
"""

import json
from collections.abc import Sequence
from dataclasses import MISSING, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from loadtest.report.output import write_whole
from loadtest.report.records import SCHEMA, ErrorClass, LoadRun, Objective, RequestRecord

_EVENTS = ("event_us", "event_tokens")
_PLAIN = tuple(each for each in fields(RequestRecord) if each.name not in ("tokens", "timings"))
_TIMES = frozenset(("intended", "sent", "headers", "finished"))
_MICRO = 1_000_000


class RunFileError(ValueError):
    """The file is no run; the message names it and what is wrong."""


def write_run(run: LoadRun, path: Path) -> None:
    """Write a run; the file is whole or not there."""
    content = {each.name: getattr(run, each.name) for each in fields(run)}
    content["objectives"] = {name: _own_fields(bounds) for name, bounds in run.objectives.items()}
    content["records"] = _columns(run.records)
    write_whole(path, json.dumps({"schema": SCHEMA, **content}, separators=(",", ":")))


def read_run(path: Path) -> LoadRun:
    """Read what `write_run` wrote; fields that are not known are ignored.

    Raises:
        RunFileError: it is not JSON, has another schema, or lacks something.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RunFileError(f"{path} is not JSON: {error}") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise RunFileError(f"{path} is no run of this version: its schema is {schema!r}, not {SCHEMA!r}")
    try:
        content["records"] = _records(content["records"])
        content["objectives"] = {name: Objective(**bounds) for name, bounds in content["objectives"].items()}
        return LoadRun(**{each.name: content[each.name] for each in fields(LoadRun) if each.name in content})
    except (LookupError, ArithmeticError, TypeError, ValueError, AttributeError) as error:
        raise RunFileError(f"{path} is no whole run: {type(error).__name__}: {error}") from None


def _columns(records: Sequence[RequestRecord]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for each in _PLAIN:
        values = [getattr(record, each.name) for record in records]
        if each.name in _TIMES:
            values = [None if value is None else round(value, 6) for value in values]
        default = [] if each.name == "violations" else each.default
        if default is MISSING or any(value != default for value in values):
            columns[each.name] = values
    columns["event_us"] = [_gaps([round(at * _MICRO) for at, _ in record.tokens]) for record in records]
    columns["event_tokens"] = [_counts([count for _, count in record.tokens]) for record in records]
    told = {name for record in records for name in record.timings or ()}
    if told:
        columns["timings"] = {name: [_timing(record, name) for record in records] for name in sorted(told)}
    return columns


def _gaps(times: Sequence[int]) -> list[int]:
    return [*times[:1], *(after - before for before, after in pairwise(times))]


def _counts(counts: Sequence[int]) -> int | list[int]:
    """A list, or the number that they all are."""
    return [*counts] if len(set(counts)) > 1 else next(iter(counts), 1)


def _timing(record: RequestRecord, name: str) -> float | None:
    value = (record.timings or {}).get(name)
    return None if value is None else round(value, 3)


def _records(columns: dict[str, Any]) -> list[RequestRecord]:
    plain = {each.name: columns[each.name] for each in _PLAIN if each.name in columns}
    timings: dict[str, list[float | None]] = columns.get("timings", {})
    found = []
    for place, row in enumerate(zip(*plain.values(), *(columns[name] for name in _EVENTS), strict=True)):
        known = dict(zip(plain, row, strict=False))
        gaps, counts = row[-2:]
        tokens = [counts] * len(gaps) if isinstance(counts, int) else counts
        known["tokens"] = list(zip((at / _MICRO for at in accumulate(gaps)), tokens, strict=True))
        told = {name: value for name, values in timings.items() if (value := values[place]) is not None}
        known["timings"] = told or None
        known["error"] = known.get("error") and ErrorClass(known["error"])
        found.append(RequestRecord(**known))
    return found


def _own_fields(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}
