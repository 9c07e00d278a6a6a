"""Python literals as JSON: the arguments of calls that models write as Python does."""

import ast
import json
import re
import warnings
from collections.abc import Iterable
from typing import Any

from server.text.formats.characters import SPACE, Characters, Give, Malformed, Reading

_WORD = re.compile(r"\w*")
_PLAIN = re.compile(r"""[^'"()\[\]{},]*""")
_QUOTED = {quote: re.compile(rf"[^{quote}\\]*") for quote in "'\""}


def read_argument(chars: Characters, names: Iterable[str] = ()) -> Reading[tuple[str | None, str]]:
    """One argument of a call: its keyword, or None, and the source of its value.

    Args:
        chars: the text, at its first character.
        names: keywords that are known. Tools have some that are no names in Python.

    Raises:
        Malformed: there is none, or the text ends within it.
    """
    odd = tuple(f"{name}=" for name in names if not _WORD.fullmatch(name))
    key: str | None = (yield from chars.literal(odd)).removesuffix("=")
    pieces: list[str] = []
    if not key:
        key = yield from chars.word(_WORD)
        pieces = [key, (yield from chars.word(SPACE))]
        if key and (yield from chars.literal(("=",))):
            pieces = []
        else:
            key = None
    yield from _source(chars, pieces.append)
    source = "".join(pieces).strip()
    if not source:
        raise Malformed
    return key, source


def _source(chars: Characters, give: Give) -> Reading[None]:
    depth = 0
    while True:
        yield from chars.run(_PLAIN, give)
        char = yield from chars.peek()
        if not char:
            raise Malformed
        if depth == 0 and char in ",)]}":
            return
        chars.at += 1
        give(char)
        if char in "'\"":
            yield from _rest_of_string(chars, char, give)
        elif char != ",":
            depth += 1 if char in "([{" else -1


def _rest_of_string(chars: Characters, quote: str, give: Give) -> Reading[None]:
    while True:
        yield from chars.run(_QUOTED[quote], give)
        char = yield from chars.peek()
        chars.at += len(char)
        give(char)
        if char != "\\":
            return
        char = yield from chars.peek()
        chars.at += len(char)
        give(char)


def literal_as_json(source: str, *, json_first: bool = False) -> str:
    """The value of a literal, Python's or JSON's, as JSON. What is neither is a string. `json_first`: what is both is JSON."""
    for read in (json.loads, _python_value) if json_first else (_python_value, json.loads):
        try:
            text = json.dumps(read(source), ensure_ascii=False, allow_nan=False)
            text.encode()
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        return text
    return json.dumps(source, ensure_ascii=False)


def _python_value(source: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        return ast.literal_eval(source)
