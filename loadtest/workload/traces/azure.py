"""Azure LLM inference traces of 2023, `conv` and `code` (Patel et al., Splitwise, ISCA 2024): CSV with CRLF line ends."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, numbered, tokens

NAME = "azure"
TICK = 0.0
TIMED = True
_COLUMNS = "TIMESTAMP,ContextTokens,GeneratedTokens"
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(\.\d+)?(?:\+00:00|Z)?")


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    return first == _COLUMNS


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, by seconds since 1970."""
    lines = numbered(path)
    next(lines)
    for number, line in lines:
        try:
            cells = line.split(",")
            if len(cells) != 3:
                raise BrokenRow(f"{len(cells)} columns instead of 3")
            yield TraceRequest(
                line=number,
                arrival=_stamp(cells[0]),
                prompt_tokens=tokens(cells[1], "ContextTokens"),
                output_tokens=tokens(cells[2], "GeneratedTokens"),
            )
        except BrokenRow as error:
            problems.broken(number, str(error))


def _stamp(text: str) -> float:
    """Seconds since 1970. The fraction has seven digits (100 ns), one more than datetime reads, so it is parsed on its own."""
    match = _STAMP.fullmatch(text)
    if match is None:
        raise BrokenRow(f"TIMESTAMP is {text!r}, not YYYY-MM-DD HH:MM:SS.fraction")
    try:
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=UTC)
    except ValueError as error:
        raise BrokenRow(f"TIMESTAMP is {text!r}: {error}") from None
    return whole.timestamp() + float(match[2] or 0)
