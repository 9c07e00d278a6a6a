"""headrace's own format, described in docs/trace-format.md: a header line, then one JSON object per request."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, TraceError, field_of, numbered, seconds, tokens

NAME = "headrace"
VERSION = "headrace.trace/1"
TIMED = True
_KEYS = frozenset(("at", "prompt_tokens", "output_tokens", "class", "session", "blocks", "block_tokens", "prompt"))


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's header, of any version."""
    return first.startswith("{") and '"headrace.trace/' in first


def tick(path: Path) -> float:
    """The header's `tick`, in seconds. Raises TraceError unless it is a header of this version."""
    _, first = next(numbered(path))
    try:
        header = json.loads(first)
        if header.get("format") != VERSION:
            raise BrokenRow(f"it is {header.get('format')!r}; this version reads {VERSION!r}")
        return seconds(header.get("tick", 0), "tick")
    except ValueError as error:
        raise TraceError(f"the header of {path}: {error}") from None


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, by their `at`."""
    lines = numbered(path)
    next(lines)
    for number, line in lines:
        try:
            row = json.loads(line)
            yield _request(number, row)
        except (ValueError, BrokenRow) as error:
            problems.broken(number, str(error))


def write(path: Path, requests: Iterable[TraceRequest], *, tick: float = 0.0) -> None:
    """Write a trace that `read` reads back; `tick` in seconds."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": VERSION, "tick": tick}) + "\n")
        for request in requests:
            file.write(json.dumps(_row(request)) + "\n")


def _row(request: TraceRequest) -> dict[str, Any]:
    row: dict[str, Any] = {"at": request.arrival, "output_tokens": request.output_tokens}
    if request.prompt is None:
        row["prompt_tokens"] = request.prompt_tokens
    else:
        row["prompt"] = request.prompt
    if request.klass != "default":
        row["class"] = request.klass
    if request.session is not None:
        row["session"] = request.session
    if request.blocks:
        row |= {"blocks": list(request.blocks), "block_tokens": request.block_tokens}
    return row


def _request(number: int, row: Any) -> TraceRequest:
    if not isinstance(row, dict):
        raise BrokenRow("not a JSON object")
    unknown = sorted(row.keys() - _KEYS)
    if unknown:
        raise BrokenRow(f"unknown fields {', '.join(unknown)}")
    prompt, session = row.get("prompt"), row.get("session")
    if not isinstance(prompt, str | None) or not isinstance(session, str | None):
        raise BrokenRow("prompt and session must be texts")
    count = 0 if prompt is not None else tokens(field_of(row, "prompt_tokens"), "prompt_tokens")
    return TraceRequest(
        line=number,
        arrival=seconds(field_of(row, "at"), "at"),
        prompt_tokens=count,
        output_tokens=tokens(field_of(row, "output_tokens"), "output_tokens"),
        klass=str(row.get("class") or "default"),
        session=session,
        prompt=prompt,
        **_sharing(row, count),
    )


def _sharing(row: dict[str, Any], count: int) -> dict[str, Any]:
    blocks = row.get("blocks")
    if blocks is None:
        return {}
    size = tokens(field_of(row, "block_tokens"), "block_tokens")
    if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
        raise BrokenRow("blocks is not a list of whole numbers")
    if len(blocks) != -(-count // size):
        raise BrokenRow(f"{len(blocks)} blocks; {count} tokens are {-(-count // size)} blocks of {size}")
    return {"blocks": tuple(blocks), "block_tokens": size}
