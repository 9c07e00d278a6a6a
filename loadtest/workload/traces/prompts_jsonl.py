"""JSON lines of plain prompts: `prompt`, `question`, `text` or `instruction` as a string, or `turns` as a list of them.

There are no times, so arrivals must be drawn. An answer's length is the optional `output_tokens` (or `max_tokens`), else
`DEFAULT_OUTPUT_TOKENS`. The turns of a row are a session: each request's prompt is all turns so far. `category` becomes the class.
"""

import json
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, numbered, tokens

NAME = "prompts"
TICK = 0.0
TIMED = False
DEFAULT_OUTPUT_TOKENS = 128
_TEXTS = ("prompt", "question", "text", "instruction")


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    try:
        return bool(_turns(json.loads(first)))
    except (ValueError, BrokenRow):
        return False


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, all at time 0."""
    for number, line in numbered(path):
        try:
            row = json.loads(line)
            turns = _turns(row)
            length = row.get("output_tokens", row.get("max_tokens", DEFAULT_OUTPUT_TOKENS))
            output = tokens(length, "output_tokens")
        except (ValueError, BrokenRow) as error:
            problems.broken(number, f"no prompt: {error}")
            continue
        for prompt in accumulate(turns, lambda history, turn: f"{history}\n\n{turn}"):
            yield TraceRequest(
                line=number,
                arrival=0.0,
                prompt_tokens=0,
                output_tokens=output,
                klass=str(row.get("category") or "default"),
                session=f"line {number}" if len(turns) > 1 else None,
                prompt=prompt,
            )


def _turns(row: Any) -> list[str]:
    if not isinstance(row, dict):
        raise BrokenRow("not a JSON object")
    turns = row.get("turns") or [row[name] for name in _TEXTS if row.get(name)][:1]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
        raise BrokenRow(f"none of {', '.join(_TEXTS)} is a text, and turns is not a list of texts")
    return turns
