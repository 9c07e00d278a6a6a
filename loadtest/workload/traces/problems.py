"""What is wrong with a trace, row by row, and how the fields of a row are read. Each reason names the field and its value."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from loadtest.workload.traces import LeftOut

_MOST_TOKENS = (1 << 31) - 1  # a longer prompt or answer is a mistake, and would not fit into memory
_SHOWN = 60  # characters shown of a value
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class TraceError(ValueError):
    """The file is not a trace, or has a broken row and `strict` is set; the message names the file and the line."""


class BrokenRow(ValueError):
    """A row that cannot be read; the message is the reason."""


class Problems:
    """Collects problems as `FILE, line N: reason`.

    Args:
        name: the file's, for messages.
        strict: whether the first broken row raises TraceError.
    """

    def __init__(self, name: str, *, strict: bool) -> None:
        self.found: list[LeftOut] = []
        self._name = name
        self._strict = strict

    def broken(self, line: int, reason: str) -> None:
        """Note a row that cannot be read. Raises TraceError if strict."""
        self.left_out(line, reason)
        if self._strict:
            raise TraceError(self.found[-1].text)

    def left_out(self, line: int, reason: str) -> None:
        """Note a row that is valid but cannot be replayed, such as a failed request. Never raises."""
        self.found.append(LeftOut(line, f"{self._name}, line {line}: {reason}"))


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1, without line ends (LF or CRLF; the last may have none); empty ones are skipped.

    Raises TraceError if it is named as a gzipped file and is none.
    """
    with opened(path) as file:
        try:
            for number, line in enumerate(file, 1):
                stripped = line.rstrip("\r\n")
                if stripped:
                    yield number, stripped
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise TraceError(f"{path} is not a whole gzipped file: {error}") from None


def opened(path: Path) -> IO[str]:
    """The file as text, gzipped if its name says so."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="\n")
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n")


def shown(value: Any) -> str:
    """A value as messages show it: a text in quotes, anything else as JSON, cut if it is long."""
    try:
        text = repr(value) if isinstance(value, str) else json.dumps(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a nesting too deep
        text = f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def cells(line: str, delimiter: str = ",") -> list[str]:
    """The cells of a line of CSV, quoted or not. Raises BrokenRow if its quotes are wrong."""
    try:
        return next(csv.reader([line], strict=True, delimiter=delimiter))
    except (csv.Error, StopIteration) as error:
        raise BrokenRow(f"{shown(line)} is not CSV: {error}") from None


def json_object(line: str) -> dict[str, Any]:
    """The JSON object of a line. Raises BrokenRow if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenRow(f"{shown(line)} is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise BrokenRow(f"{shown(line)} is not a JSON object")
    return row


def number(cell: str, name: str) -> float:
    """The number in a cell of CSV, as printed by a program: no blanks, no underscores, no `inf`. Raises BrokenRow."""
    if not _NUMBER.fullmatch(cell):
        raise BrokenRow(f"{name} is {shown(cell)}, not a number")
    whole = cell.lstrip("+-").isdecimal() and len(cell) <= _SHOWN
    return int(cell) if whole else float(cell)  # a message then shows it as it is written


def seconds(value: Any, name: str) -> float:
    """A finite time of at least 0. Raises BrokenRow for anything else; neither a text nor `true` is a number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise BrokenRow(f"{name} is {shown(value)}, not a number")
    if not 0 <= value <= sys.float_info.max:
        raise BrokenRow(f"{name} is {shown(value)}; it must be finite and at least 0")
    return float(value)


def tokens(value: Any, name: str, least: int = 1) -> int:
    """A count of at least `least` tokens; `472.0` is accepted, because pandas wrote some copies so. Raises BrokenRow."""
    count = seconds(value, name)
    if count != int(count):
        raise BrokenRow(f"{name} is {shown(value)}, not a whole number")
    if not least <= count <= _MOST_TOKENS:
        raise BrokenRow(f"{name} is {shown(value)}; it must be at least {least} and at most {_MOST_TOKENS:,}")
    return int(count)


def block_ids(value: Any, name: str, prompt: int, size: int) -> tuple[int, ...]:
    """The ids of a prompt's blocks, each a whole number of at least 0 (`true` and `1.0` are none). Raises BrokenRow.

    Args:
        value, name: the field.
        prompt, size: tokens of the prompt and of a block, which say how many ids there must be.
    """
    if not isinstance(value, list):
        raise BrokenRow(f"{name} is {shown(value)}, not a list of whole numbers")
    for place, block in enumerate(value):
        if not isinstance(block, int) or isinstance(block, bool) or block < 0:
            raise BrokenRow(f"{name}[{place}] is {shown(block)}, not a whole number of at least 0")
    needed = -(-prompt // size)
    if len(value) != needed:
        raise BrokenRow(f"{name} has {len(value)} ids; {prompt} tokens are {needed} blocks of {size}")
    return tuple(value)


def priority_of(value: Any, name: str) -> int:
    """A priority as servers take it, a whole number of 32 bits; 0 if it is absent or null. Raises BrokenRow."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 31) <= value < 1 << 31:
        raise BrokenRow(f"{name} is {shown(value)}, not a whole number of 32 bits")
    return value


def text_of(row: Mapping[str, Any], name: str) -> str | None:
    """An optional field that is a text; None if it is absent or null. Raises BrokenRow if it is anything else."""
    value = row.get(name)
    if not isinstance(value, str | None):
        raise BrokenRow(f"{name} is {shown(value)}, not a text")
    return value


def session_of(value: Any, name: str) -> str | None:
    """A session's name, by which requests are brought together: `1` and `1.0` are one, since pandas writes ids with gaps so.

    None if it is absent, null or empty. Raises BrokenRow unless it is a text or a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise BrokenRow(f"{name} is {shown(value)}, neither a text nor a whole number")
    if isinstance(value, float):
        if not value.is_integer():
            raise BrokenRow(f"{name} is {shown(value)}, neither a text nor a whole number")
        return str(int(value))
    if isinstance(value, int):
        return shown(value)
    return re.sub(r"^([+-]?\d+)\.0*$", r"\1", value, flags=re.ASCII) if value else None


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """A field that must be there. Raises BrokenRow if it is not."""
    if row.get(name) is None:
        raise BrokenRow(f"{name} is missing")
    return row[name]
