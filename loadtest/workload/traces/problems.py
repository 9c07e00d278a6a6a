"""What is wrong with a trace, row by row."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class TraceError(ValueError):
    """The file is no trace, or `strict` met a broken row; the sentence names file and line."""


class BrokenRow(ValueError):
    """A row that cannot be read; the sentence is the reason."""


class Problems:
    """Collects `line N: reason`.

    Args:
        name: the file, for messages.
        strict: whether the first broken row raises TraceError.
    """

    def __init__(self, name: str, *, strict: bool) -> None:
        self.found: list[str] = []
        self._name = name
        self._strict = strict

    def broken(self, line: int, reason: str) -> None:
        """A row that should not be there. Raises TraceError if strict."""
        if self._strict:
            raise TraceError(f"{self._name}, line {line}: {reason}")
        self.found.append(f"line {line}: {reason}")

    def left_out(self, line: int, reason: str) -> None:
        """A row that the format knows but nobody can replay, such as a failed request. Never raises."""
        self.found.append(f"line {line}: {reason}")


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends (LF or CRLF, the last one may have none); empty lines are skipped."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            stripped = line.rstrip("\r\n")
            if stripped:
                yield number, stripped


def seconds(text: Any, name: str) -> float:
    """A time of at least 0. Raises BrokenRow."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise BrokenRow(f"{name} is {text!r} and no number") from None
    if not 0 <= value < float("inf"):
        raise BrokenRow(f"{name} is {text!r}; it must be finite and at least 0")
    return value


def tokens(text: Any, name: str, least: int = 1) -> int:
    """A count of tokens; `472.0` is one, as some copies of traces were written by pandas. Raises BrokenRow."""
    value = seconds(text, name)
    if value != int(value):
        raise BrokenRow(f"{name} is {text!r} and no whole number")
    if value < least:
        raise BrokenRow(f"{name} is {text}; it must be at least {least}")
    return int(value)


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """A field that must be there. Raises BrokenRow."""
    if row.get(name) is None:
        raise BrokenRow(f"{name} is missing")
    return row[name]
