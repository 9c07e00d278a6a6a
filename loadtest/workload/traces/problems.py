"""What is wrong with a trace, row by row."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class TraceError(ValueError):
    """The file is not a trace, or has a broken row and `strict` is set; the message names the file and the line."""


class BrokenRow(ValueError):
    """A row that cannot be read; the message is the reason."""


class Problems:
    """Collects problems as `line N: reason`.

    Args:
        name: the file's, for messages.
        strict: whether the first broken row raises TraceError.
    """

    def __init__(self, name: str, *, strict: bool) -> None:
        self.found: list[str] = []
        self._name = name
        self._strict = strict

    def broken(self, line: int, reason: str) -> None:
        """Note a row that cannot be read. Raises TraceError if strict."""
        if self._strict:
            raise TraceError(f"{self._name}, line {line}: {reason}")
        self.found.append(f"line {line}: {reason}")

    def left_out(self, line: int, reason: str) -> None:
        """Note a row that is valid but cannot be replayed, such as a failed request. Never raises."""
        self.found.append(f"line {line}: {reason}")


def numbered(path: Path) -> Iterator[tuple[int, str]]:
    """The lines with their numbers from 1, without line ends (LF or CRLF; the last may have none); empty ones are skipped."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            stripped = line.rstrip("\r\n")
            if stripped:
                yield number, stripped


def seconds(text: Any, name: str) -> float:
    """A finite time of at least 0. Raises BrokenRow for anything else."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise BrokenRow(f"{name} is {text!r}, not a number") from None
    if not 0 <= value < float("inf"):
        raise BrokenRow(f"{name} is {text!r}; it must be finite and at least 0")
    return value


def tokens(text: Any, name: str, least: int = 1) -> int:
    """A count of at least `least` tokens; `472.0` is accepted, because pandas wrote some copies so. Raises BrokenRow."""
    value = seconds(text, name)
    if value != int(value):
        raise BrokenRow(f"{name} is {text!r}, not a whole number")
    if value < least:
        raise BrokenRow(f"{name} is {text}; it must be at least {least}")
    return int(value)


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """A field that must be there. Raises BrokenRow if it is not."""
    if row.get(name) is None:
        raise BrokenRow(f"{name} is missing")
    return row[name]
