"""A text that arrives in pieces, read one character after the other by generators that yield where they need more of it.

What a reader makes of a text can so depend on its characters alone, never on how they were cut into pieces. Texts that are only
read past are handed on at once, in whatever pieces they have.
"""

import json
import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]  # yields where the text that has arrived is used up
Give = Callable[[str], None]

SPACE = re.compile(r"\s*")
_QUOTED = re.compile(r'[^"\\]*')
_NESTED = re.compile(r"[\s\w,:+.\-]*")  # what JSON has outside of strings, but for brackets
_SCALAR = re.compile(r"[\w+.\-]*")


class Malformed(Exception):
    """The text is not what was looked for."""


class Characters:
    """What has arrived of a text, and the place up to which it was read.

    Attributes:
        text: what of it is still needed.
        at: the place in `text`.
        ended: nothing more will arrive.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._kept: int | None = None
        self._before = 0

    @property
    def place(self) -> int:
        """The place in the whole text."""
        return self._before + self.at

    def add(self, text: str) -> None:
        """More of the text. What was read is dropped, unless it is kept."""
        done = self.at if self._kept is None else self._kept
        self.text = self.text[done:] + text
        self.at -= done
        self._before += done
        self._kept = None if self._kept is None else 0

    def keep(self) -> None:
        """Remember this place for `back`."""
        self._kept = self.at

    def back(self) -> None:
        """Return to the place that was kept."""
        assert self._kept is not None
        self.at, self._kept = self._kept, None

    def release(self) -> None:
        """There will be no `back`."""
        self._kept = None

    def peek(self) -> Reading[str]:
        """The next character, which is not read; empty at the end."""
        while self.at == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def literal(self, options: Sequence[str]) -> Reading[str]:
        """The longest of these texts that comes next, which is read; empty if none does."""
        while True:
            rest = self.text[self.at : self.at + max(map(len, options), default=0)]
            found = max((each for each in options if rest.startswith(each)), key=len, default="")
            if self.ended or not any(len(each) > len(rest) and each.startswith(rest) for each in options):
                self.at += len(found)
                return found
            yield

    def run(self, pattern: re.Pattern[str], give: Give) -> Reading[None]:
        """Read as many characters as the pattern takes. It takes each of them, or not, whatever stands before it."""
        while True:
            found = pattern.match(self.text, self.at)
            assert found is not None, "the pattern takes nothing, too"
            if found[0]:
                give(found[0])
                self.at = found.end()
            if self.ended or self.at < len(self.text):
                return
            yield

    def until(self, ends: Sequence[str], give: Give) -> Reading[bool]:
        """A text up to the first of these, which is read, too; False if none comes."""
        plain = re.compile(f"[^{re.escape(''.join({end[0] for end in ends}))}]*")
        while True:
            yield from self.run(plain, give)
            if (yield from self.literal(ends)):
                return True
            if not (char := (yield from self.peek())):
                return False
            self.at += 1
            give(char)

    def word(self, pattern: re.Pattern[str]) -> Reading[str]:
        """`run`, as one text."""
        pieces: list[str] = []
        yield from self.run(pattern, pieces.append)
        return "".join(pieces)

    def skip(self, pattern: re.Pattern[str] = SPACE) -> Reading[None]:
        """Read past such characters."""
        yield from self.run(pattern, _nowhere)

    def expect(self, text: str) -> Reading[None]:
        """Read this text.

        Raises:
            Malformed: another text comes next.
        """
        if not (yield from self.literal((text,))):
            raise Malformed

    def quoted(self, give: Give) -> Reading[bool]:
        """A JSON string, as it is written; False if the text ends within it. What it begins with was looked at."""
        self.at += 1
        give('"')
        while True:
            yield from self.run(_QUOTED, give)
            char = yield from self.peek()
            self.at += len(char)
            give(char)
            if char != "\\":
                return bool(char)
            char = yield from self.peek()
            self.at += len(char)
            give(char)

    def string(self) -> Reading[str]:
        """A JSON string as the text that it stands for.

        Raises:
            Malformed: it is none.
        """
        pieces: list[str] = []
        if (yield from self.peek()) != '"' or not (yield from self.quoted(pieces.append)):
            raise Malformed
        return unquoted("".join(pieces))

    def value(self, give: Give) -> Reading[None]:
        """A JSON value, as it is written. Where it breaks off or has what JSON has not, it ends.

        Raises:
            Malformed: it does not begin as one.
        """
        first = yield from self.peek()
        if first == '"':
            yield from self.quoted(give)
        elif first and first in "{[":
            yield from self._nested(give)
        elif first and _SCALAR.fullmatch(first):
            yield from self.run(_SCALAR, give)
        else:
            raise Malformed

    def _nested(self, give: Give) -> Reading[None]:
        depth = 0
        while True:
            yield from self.run(_NESTED, give)
            char = yield from self.peek()
            if char == '"':
                yield from self.quoted(give)
                continue
            if not char or char not in "{[]}":
                return
            self.at += 1
            give(char)
            depth += 1 if char in "{[" else -1
            if depth == 0:
                return


def unquoted(text: str) -> str:
    """What a JSON string stands for; line breaks within it may be written as they are.

    Raises:
        Malformed: it is none.
    """
    try:
        value = str(json.loads(text, strict=False))
        value.encode()
    except ValueError:  # such as half a pair of surrogates
        raise Malformed from None
    return value


def _nowhere(text: str) -> None:
    """Takes a text that nobody wants."""
