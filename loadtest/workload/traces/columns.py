"""Traces of formats that nobody here knows: the user says which column is what, in CSV (any of `,`, `;`, tab) or in JSON lines.

    time=ts:ms,input=prompt_len,output=gen_len,session=user.id,blocks=hash_ids,block_tokens=16,class=model

A name may lead into nested objects (`usage.prompt_tokens`). Times are numbers with a unit (s, unless ms, us or ns is said), ISO
8601, or times of day (`23:59:58.5`), which may pass midnight; rows need not be in order. Blocks are ids of any kind, in a list of
JSON or separated by blanks or any of `,;|`; nested lists are flattened depth first, from left to right. Where the ids name whole
blocks only, the rest of the prompt is the request's own.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import (
    BrokenRow,
    Problems,
    TraceError,
    cells,
    json_object,
    number,
    numbered,
    priority_of,
    seconds,
    session_of,
    shown,
    tokens,
)

NAME = "columns"
EXAMPLE = "time=ts:ms,input=prompt_len,output=gen_len,session=id,blocks=hash_ids,block_tokens=16"
_KNOWN = ("time", "input", "output", "session", "class", "tenant", "priority", "blocks", "block_tokens")
_NEEDED = ("input", "output")
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # in a second
_DAY = 86_400.0
_MOST_SECONDS = 1e11  # about 3,000 years since 1970: such numbers are not seconds
_CLOCK = re.compile(r"(\d{1,2}):(\d\d):(\d\d(?:[.,]\d+)?)")
_DELIMITERS = (",", ";", "\t")


@dataclass(frozen=True, slots=True)
class ColumnMap:
    """Which column is what.

    Attributes:
        names: what it is -> name of the column.
        unit: so many of a time that is a number are a second.
        stated: whether the user says so.
        block_tokens: tokens of a block; 0 without blocks.
    """

    names: Mapping[str, str]
    unit: int = 1
    stated: bool = False
    block_tokens: int = 0

    @property
    def timed(self) -> bool:
        """Whether there are times."""
        return "time" in self.names


def parse_columns(text: str) -> ColumnMap:
    """Read `--columns`. Raises TraceError, which says what is accepted."""
    names: dict[str, str] = {}
    for pair in text.split(","):
        what, equals, name = pair.strip().partition("=")
        if what not in _KNOWN or what in names or not equals or not name:
            raise TraceError(f"--columns: {pair!r} names none of {', '.join(_KNOWN)}, or one twice: {EXAMPLE}")
        names[what] = name
    if missing := [what for what in _NEEDED if what not in names]:
        raise TraceError(f"--columns has no {missing[0]}: {EXAMPLE}")
    if ("blocks" in names) != ("block_tokens" in names):
        raise TraceError(f"--columns: blocks and block_tokens, the tokens of a block, belong together: {EXAMPLE}")
    size = names.pop("block_tokens", "0")
    if not size.isdecimal() or ("blocks" in names and int(size) < 1):
        raise TraceError(f"--columns: block_tokens={size} is no number of tokens")
    name, colon, unit = names.get("time", "").rpartition(":")
    if colon and unit not in _UNITS:
        raise TraceError(f"--columns: {unit!r} is no unit of time: {', '.join(_UNITS)}")
    if colon:
        names["time"] = name
    return ColumnMap(names, _UNITS[unit] if colon else 1, bool(colon), int(size))


@dataclass(slots=True)
class _RowReader:
    """What reading a file remembers: the numbers of its ids, and the day that times without a date are in."""

    columns: ColumnMap
    own: Iterator[int] = field(default_factory=count)
    ids: dict[str, int] = field(default_factory=dict)
    day: float = 0.0
    clock: float = 0.0

    def request(self, line: int, row: Mapping[str, Any]) -> TraceRequest:
        """A row's request. Raises BrokenRow."""
        names = self.columns.names
        prompt, output = (_count(_value(row, names[what]), names[what]) for what in _NEEDED)
        blocks = self._blocks(_value(row, names["blocks"]), names["blocks"], prompt) if "blocks" in names else ()
        session = session_of(_value(row, names["session"]), names["session"]) if "session" in names else None
        klass, tenant = (_text(row, names.get(what)) for what in ("class", "tenant"))
        priority = _value(row, names["priority"]) if "priority" in names else None
        if isinstance(priority, str):
            priority = number(priority.strip(), names["priority"]) if priority.strip() else None
        return TraceRequest(
            line=line,
            arrival=self._time(_value(row, names["time"]), names["time"]) if "time" in names else 0.0,
            prompt_tokens=prompt,
            output_tokens=output,
            klass=klass or tenant or "default",
            tenant=tenant,
            priority=priority_of(priority, names.get("priority", "")),
            session=session,
            blocks=blocks,
            block_tokens=self.columns.block_tokens if blocks else 0,
        )

    def _time(self, value: Any, name: str) -> float:
        if isinstance(value, str):
            if match := _CLOCK.fullmatch(value.strip()):
                return self._of_day(match)
            try:
                value = number(value.strip(), name)
            except BrokenRow:
                return _stamp(value.strip(), name)
        found = seconds(value, name) / self.columns.unit
        if found > _MOST_SECONDS and not self.columns.stated:
            raise BrokenRow(f"{name} is {shown(value)}: these are no seconds; write time={name}:ms, :us or :ns")
        return found

    def _of_day(self, match: re.Match[str]) -> float:
        """A time of day: one that is half a day and more before the last one is the next day's, and one as much after it that of
        the day before, if there was one: rows around midnight need not be in order."""
        clock = 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3].replace(",", "."))
        if self.clock - clock > _DAY / 2:
            self.day += _DAY
        elif self.day and clock - self.clock > _DAY / 2:
            self.day -= _DAY
        self.clock = clock
        return self.day + clock

    def _blocks(self, value: Any, name: str, prompt: int) -> tuple[int, ...]:
        if value is None or value == "":  # it shares nothing
            return ()
        found = [self.ids.setdefault(each, next(self.own)) for each in _flat(value, name)]
        size = self.columns.block_tokens
        needed = -(-prompt // size)
        if len(found) > needed:
            raise BrokenRow(f"{name} has {len(found)} ids; {prompt} tokens are {needed} blocks of {size}")
        if len(found) < prompt // size:
            raise BrokenRow(
                f"{name} has {len(found)} ids; {prompt} tokens have {prompt // size} whole blocks of {size}"
            )
        return (*found, *(next(self.own) for _ in range(needed - len(found))))


def read(path: Path, problems: Problems, columns: ColumnMap) -> Iterator[TraceRequest]:
    """Its requests. Raises TraceError if a column is in no row."""
    reader = _RowReader(columns)
    for line, row in _rows(path, problems, columns):
        try:
            yield reader.request(line, row)
        except BrokenRow as error:
            problems.broken(line, str(error))


def _rows(path: Path, problems: Problems, columns: ColumnMap) -> Iterator[tuple[int, Mapping[str, Any]]]:
    lines = numbered(path)
    at, first = next(lines, (0, ""))
    if first.lstrip().startswith("{"):
        for place, line in chain([(at, first)], lines):
            try:
                yield place, json_object(line)
            except BrokenRow as error:
                problems.broken(place, str(error))
        return
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip() for name in cells(first, delimiter)]
    if missing := [name for name in columns.names.values() if name not in header]:
        raise TraceError(f"{path} has no column {missing[0]!r}; it has {', '.join(header)[:300]}")
    for place, line in lines:
        try:
            values = cells(line, delimiter)
            if len(values) != len(header):
                raise BrokenRow(f"{shown(line)} has {len(values)} columns instead of {len(header)}")
        except BrokenRow as error:
            problems.broken(place, str(error))
            continue
        yield place, dict(zip(header, values, strict=True))


def _value(row: Mapping[str, Any], name: str) -> Any:
    """What stands there: under the name itself, or along its parts. Raises BrokenRow if the row has no such field."""
    if name in row:
        return row[name]
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, dict) or part not in found:
            raise BrokenRow(f"there is no {name}; the row has {', '.join(row)[:200]}")
        found = found[part]
    return found


def _text(row: Mapping[str, Any], name: str | None) -> str | None:
    """What stands in a column as text; None without the column, or if nothing stands there."""
    value = None if name is None else _value(row, name)
    return None if value in (None, "") else str(value)


def _count(value: Any, name: str) -> int:
    return tokens(number(value.strip(), name) if isinstance(value, str) else value, name)


def _stamp(text: str, name: str) -> float:
    """Seconds since 1970 of ISO 8601; without a zone it is UTC."""
    try:
        stamp = datetime.fromisoformat(text)
    except ValueError:
        raise BrokenRow(
            f"{name} is {shown(text)}, neither a number nor a time as 2026-01-31T12:00:00.5Z or 12:00:00.5"
        ) from None
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def _flat(value: Any, name: str) -> list[str]:
    """The ids in order, as text; of numbers and texts that look alike both are one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [part for part in re.split(r"[\s,;|]+", value.strip(" []()")) if part]
    if isinstance(value, list):
        return [each for part in value for each in (_flat(part, name) if isinstance(part, list) else [_id(part, name)])]
    return [_id(value, name)]


def _id(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BrokenRow(f"{name} has {shown(value)}, which is no id")
    return str(value)
