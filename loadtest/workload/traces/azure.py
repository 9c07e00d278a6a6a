"""Azure LLM inference traces of 2023, `conv` and `code` (Patel et al., Splitwise, ISCA 2024): CSV with CRLF line ends."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, TraceError, cells, number, numbered, shown, tokens

NAME = "azure"
TICK = 0.0
TIMED = True
_COLUMNS = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?(?:\+00:00|Z)?", re.ASCII)


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    try:
        return cells(first) == _COLUMNS
    except BrokenRow:
        return False


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, by seconds since 1970. Raises TraceError without the header."""
    lines = numbered(path)
    _, header = next(lines, (0, ""))
    if not sniff(header):
        raise TraceError(f"{path}, line 1: {shown(header)} is not the columns {', '.join(_COLUMNS)}")
    for line, text in lines:
        try:
            yield _request(line, cells(text))
        except BrokenRow as error:
            problems.broken(line, str(error))


def _request(line: int, row: Sequence[str]) -> TraceRequest:
    if len(row) != len(_COLUMNS):
        raise BrokenRow(f"{shown(','.join(row))} has {len(row)} columns instead of {len(_COLUMNS)}")
    counts = [tokens(number(cell, name), name) for cell, name in zip(row[1:], _COLUMNS[1:], strict=True)]
    return TraceRequest(line=line, arrival=_stamp(row[0]), prompt_tokens=counts[0], output_tokens=counts[1])


def _stamp(text: str) -> float:
    """Seconds since 1970. The fraction has seven digits (100 ns), one more than datetime reads, so it is parsed on its own."""
    match = _STAMP.fullmatch(text)
    if match is None:
        raise BrokenRow(f"TIMESTAMP is {shown(text)}, not YYYY-MM-DD HH:MM:SS.fraction")
    try:
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    except ValueError as error:
        raise BrokenRow(f"TIMESTAMP is {shown(text)}: {error}") from None
    return whole.timestamp() + float(match[2] or 0)
