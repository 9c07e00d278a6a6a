"""Command lines with alternatives: `serve --max-step-tokens {128,256}` is two of them, and each further `{..}` multiplies.

Alternatives are split at commas, nothing is escaped, and braces with a quotation mark in them are left alone: they are JSON. An
alternative may be empty; an argument that is empty for that is left out: `{,--no-prefix-caching}`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

_ALTERNATIVES = re.compile(r"\{([^{}\"']*,[^{}\"']*)\}")


@dataclass(frozen=True, slots=True)
class Combination:
    """One command line.

    Attributes:
        name: what tells it from the others.
        command: program and arguments.
    """

    name: str
    command: tuple[str, ...]


def combinations(command: Sequence[str]) -> list[Combination]:
    """All of them, the last alternatives changing fastest. Raises ValueError if the command has none."""
    parts = [_alternatives(argument) for argument in command]
    several = [place for place, found in enumerate(parts) if len(found) > 1]
    if not several:
        raise ValueError(
            "the command has no alternatives: write '{128,256}' in place of a value, in quotes, since a shell expands the braces"
        )
    return [
        Combination(
            ", ".join(_name(command, place, chosen[place]) for place in several),
            tuple(argument for place, argument in enumerate(chosen) if argument or place not in several),
        )
        for chosen in product(*parts)
    ]


def _alternatives(argument: str) -> list[str]:
    """What an argument may be."""
    pieces = _ALTERNATIVES.split(argument)  # text, alternatives, text, ...
    choices = [piece.split(",") if place % 2 else [piece] for place, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _name(command: Sequence[str], place: int, value: str) -> str:
    """A flag and its value; the value alone where it says what it is."""
    before = command[place - 1] if place else ""
    if value.startswith("-") or not before.startswith("-") or "=" in before:
        return value or f"without {'|'.join(each for each in _alternatives(command[place]) if each)}"
    return f"{before} {value}"
