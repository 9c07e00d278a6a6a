"""ShareGPT-like conversations: `{"id", "conversations": [{"from": "human" | "gpt", "value"}]}`, as a JSON array or JSON lines.

Every human turn that has an answer is a request in the conversation's session; its prompt is the history up to and including
that turn. There are no times. Output lengths are estimated from the answer's characters, because the files have only text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import (
    BrokenRow,
    Problems,
    TraceError,
    field_of,
    json_object,
    numbered,
    opened,
    session_of,
    shown,
)

NAME = "sharegpt"
TICK = 0.0
TIMED = False
CHARACTERS_PER_TOKEN = 4.0
_HUMAN = frozenset(("human", "user"))
_MACHINE = frozenset(("gpt", "chatgpt", "assistant", "bing", "bard"))


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's: an array of conversations may begin with a bare bracket."""
    return first.strip() in ("[", "[{") or '"conversations"' in first or first.lstrip().startswith("[{")


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, all at time 0. In an array, `line` counts conversations. Raises TraceError for an array that is not JSON."""
    for number, row in _rows(path, problems):
        try:
            yield from _requests(number, row)
        except BrokenRow as error:
            problems.broken(number, str(error))


def _rows(path: Path, problems: Problems) -> Iterator[tuple[int, Any]]:
    if next((line for _, line in numbered(path)), "").lstrip().startswith("["):
        try:
            with opened(path) as file:
                yield from enumerate(json.load(file), 1)
        except (ValueError, RecursionError) as error:
            raise TraceError(f"{path} begins like a JSON array but is not one: {error}") from None
        return
    for number, line in numbered(path):
        try:
            yield number, json_object(line)
        except BrokenRow as error:
            problems.broken(number, str(error))


def _requests(number: int, row: Any) -> list[TraceRequest]:
    if not isinstance(row, dict):
        raise BrokenRow(f"{shown(row)} is not a JSON object")
    turns = field_of(row, "conversations")
    if not isinstance(turns, list):
        raise BrokenRow(f"conversations is {shown(turns)}, not a list")
    said = [_turn(turn, place) for place, turn in enumerate(turns)]
    session = session_of(row.get("id"), "id") or f"line {number}"
    found = [
        TraceRequest(
            line=number,
            arrival=0.0,
            prompt_tokens=0,
            output_tokens=max(1, round(len(said[place + 1][1]) / CHARACTERS_PER_TOKEN)),
            session=session,
            prompt="\n\n".join(text for _, text in said[: place + 1]),
        )
        for place, (speaker, _) in enumerate(said[:-1])
        if speaker in _HUMAN and said[place + 1][0] in _MACHINE
    ]
    if not found:
        raise BrokenRow(f"no human turn with an answer: conversations is {shown(turns)}")
    return found


def _turn(turn: Any, place: int) -> tuple[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or not isinstance(turn.get("from"), str):
        raise BrokenRow(f"conversations[{place}] is {shown(turn)}, without the texts `from` and `value`")
    return turn["from"], turn["value"]
