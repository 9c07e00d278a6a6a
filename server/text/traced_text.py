"""Text that knows which of its characters a chat template wrote, so that nothing a client wrote can pass for the template's.

What is marked is the template's own text, never the client's: an operation that keeps no marks gives text that counts as a
client's. That way what is overlooked costs a marker and never lets one be forged.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, SupportsIndex

_OWN, _FOREIGN = b"\1", b"\0"


class TracedText(str):
    """A string with a mark for each character that is the template's. Made by its constructor it has none."""

    _marks: bytes | None = None  # a byte a character; None: no marks

    @classmethod
    def marked(cls, text: str, marks: bytes) -> "TracedText":
        """The text with these marks, one byte a character."""
        traced = cls(text)
        traced._marks = marks
        return traced

    @classmethod
    def written(cls, text: str) -> "TracedText":
        """All of it the template's."""
        return cls.marked(text, _OWN * len(text))

    @classmethod
    def joined(cls, pieces: Iterable[str]) -> "TracedText":
        """One text after the other."""
        pieces = list(pieces)
        return cls.marked("".join(pieces), b"".join(map(marks_of, pieces)))

    def __str__(self) -> "TracedText":
        return self

    def __add__(self, other: str) -> "TracedText":
        return self.joined((self, other)) if _is_plain(other) else NotImplemented

    def __radd__(self, other: str) -> "TracedText":
        return self.joined((other, self)) if _is_plain(other) else NotImplemented

    def __getitem__(self, at: SupportsIndex | slice) -> "TracedText":
        if isinstance(at, slice):
            return self.marked(super().__getitem__(at), marks_of(self)[at])
        return self.marked(super().__getitem__(at), bytes((marks_of(self)[at],)))

    def join(self, pieces: Iterable[str], /) -> "TracedText":
        """The pieces with this text between them."""
        between: list[str] = []
        for piece in pieces:
            if not isinstance(piece, str):
                raise TypeError(f"a text can be joined of texts only, got {type(piece).__name__}")
            between += (self, piece)
        return self.joined(between[1:])

    def strip(self, chars: str | None = None, /) -> "TracedText":
        """As of any string."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> "TracedText":
        """As of any string."""
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "TracedText":
        """As of any string."""
        return self[: len(super().rstrip(chars))]

    def removeprefix(self, prefix: str, /) -> "TracedText":
        """As of any string."""
        return self[len(prefix) if self.startswith(prefix) else 0 :]

    def removesuffix(self, suffix: str, /) -> "TracedText":
        """As of any string."""
        return self[: len(super().removesuffix(suffix))]


def marks_of(text: str) -> bytes:
    """A byte a character: 1 where it is the template's, else 0."""
    marks = text._marks if isinstance(text, TracedText) else None
    return _FOREIGN * len(text) if marks is None else marks


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and not hasattr(value, "__html__")  # Jinja's `Markup` escapes what it is added to


def _is_written(value: Any) -> bool:
    """Whether no client's text is in it."""
    if isinstance(value, str):
        return _FOREIGN not in marks_of(value)
    if isinstance(value, tuple | list):
        return all(map(_is_written, value))
    return value is None or isinstance(value, int | float)


def _of_the_template_alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, whose result is the template's if all that goes into it is."""

    @functools.wraps(method)
    def traced(text: TracedText, *args: Any, **kwargs: Any) -> Any:
        result = method(text, *args, **kwargs)
        if result is NotImplemented:
            return NotImplemented
        return TracedText.written(result) if _is_written([text, *args, *kwargs.values()]) else TracedText(result)

    return traced


for _name in ("__mod__", "__mul__", "capitalize", "lower", "replace", "swapcase", "title", "upper"):
    setattr(TracedText, _name, _of_the_template_alone(getattr(str, _name)))
