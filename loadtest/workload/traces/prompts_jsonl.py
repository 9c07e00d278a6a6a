"""JSON lines of plain prompts: `prompt`, `question`, `text` or `instruction` as a string, or `turns` as a list of them.

There are no times, so arrivals must be drawn. An answer's length is the optional `output_tokens` (or `max_tokens`), else
`DEFAULT_OUTPUT_TOKENS`. The turns of a row are a session: each request's prompt is all turns so far. `category` becomes the class.
"""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, json_object, numbered, shown, text_of, tokens

NAME = "prompts"
TICK = 0.0
TIMED = False
DEFAULT_OUTPUT_TOKENS = 128
_TEXTS = ("prompt", "question", "text", "instruction")


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    try:
        return bool(_turns(json_object(first)))
    except BrokenRow:
        return False


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, all at time 0."""
    for number, line in numbered(path):
        try:
            row = json_object(line)
            turns, klass = _turns(row), text_of(row, "category") or "default"
            name = "max_tokens" if row.get("output_tokens") is None else "output_tokens"
            output = DEFAULT_OUTPUT_TOKENS if row.get(name) is None else tokens(row[name], name)
        except BrokenRow as error:
            problems.broken(number, str(error))
            continue
        for prompt in accumulate(turns, lambda history, turn: f"{history}\n\n{turn}"):
            yield TraceRequest(
                line=number,
                arrival=0.0,
                prompt_tokens=0,
                output_tokens=output,
                klass=klass,
                session=f"line {number}" if len(turns) > 1 else None,
                prompt=prompt,
            )


def _turns(row: dict[str, Any]) -> list[str]:
    name = next((name for name in ("turns", *_TEXTS) if row.get(name)), None)
    if name is None:
        raise BrokenRow(f"no prompt: turns, {', '.join(_TEXTS)} are missing or empty")
    turns = row[name] if name == "turns" else [row[name]]
    if not isinstance(turns, list) or not all(isinstance(turn, str) and turn for turn in turns):
        raise BrokenRow(
            f"no prompt: {name} is {shown(row[name])}, not a {'list of texts' if name == 'turns' else 'text'}"
        )
    return turns
