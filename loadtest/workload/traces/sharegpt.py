"""ShareGPT-like conversations: `{"id", "conversations": [{"from": "human" | "gpt", "value"}]}`, as a JSON array or JSON lines.

Every human turn that has an answer is a request in the conversation's session; its prompt is the history up to and including
that turn. There are no times. Output lengths are estimated from the answer's characters, because the files have only text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, TraceError, numbered

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
    with path.open(encoding="utf-8-sig") as file:
        array = file.read(64).lstrip().startswith("[")
    if array:
        try:
            yield from enumerate(json.loads(path.read_text(encoding="utf-8-sig")), 1)
        except ValueError as error:
            raise TraceError(f"{path} begins like a JSON array but is not one: {error}") from None
        return
    for number, line in numbered(path):
        try:
            yield number, json.loads(line)
        except ValueError as error:
            problems.broken(number, f"not JSON: {error}")


def _requests(number: int, row: Any) -> list[TraceRequest]:
    turns = row.get("conversations") if isinstance(row, dict) else None
    if not isinstance(turns, list):
        raise BrokenRow("no conversations")
    found: list[TraceRequest] = []
    history: list[str] = []
    for turn, answer in zip(turns, [*turns[1:], None], strict=True):
        speaker, said = _turn(turn)
        history.append(said)
        if speaker in _HUMAN and answer is not None and _turn(answer)[0] in _MACHINE:
            found.append(
                TraceRequest(
                    line=number,
                    arrival=0.0,
                    prompt_tokens=0,
                    output_tokens=max(1, round(len(_turn(answer)[1]) / CHARACTERS_PER_TOKEN)),
                    session=str(row.get("id") or f"line {number}"),
                    prompt="\n\n".join(history),
                )
            )
    if not found:
        raise BrokenRow("no human turn with an answer")
    return found


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or not isinstance(turn.get("from"), str):
        raise BrokenRow("a turn has no `from` and `value`")
    return turn["from"], turn["value"]
