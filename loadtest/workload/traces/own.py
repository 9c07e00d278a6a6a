"""headrace's own format, described in docs/trace-format.md: a header line, then one JSON object per request."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import (
    BrokenRow,
    Problems,
    TraceError,
    block_ids,
    field_of,
    json_object,
    numbered,
    priority_of,
    seconds,
    shown,
    text_of,
    tokens,
)

NAME = "headrace"
VERSION = "headrace.trace/1"
TIMED = True
_KEYS = frozenset(
    (
        "at",
        "prompt_tokens",
        "output_tokens",
        "class",
        "tenant",
        "priority",
        "session",
        "blocks",
        "block_tokens",
        "prompt",
    )
)


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's header, of any version."""
    return first.startswith("{") and '"headrace.trace/' in first


def tick(path: Path) -> float:
    """The header's `tick`, in seconds. Raises TraceError unless it is a header of this version."""
    line, first = next(numbered(path), (1, ""))
    try:
        header = json_object(first)
        if header.get("format") != VERSION:
            raise BrokenRow(f"format is {shown(header.get('format'))}; this version reads {VERSION!r}")
        return seconds(header.get("tick", 0), "tick")
    except BrokenRow as error:
        raise TraceError(f"{path}, line {line}, the header: {error}") from None


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, by their `at`."""
    lines = numbered(path)
    next(lines, None)
    for number, line in lines:
        try:
            yield _request(number, json_object(line))
        except BrokenRow as error:
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
    if request.tenant is not None:
        row["tenant"] = request.tenant
    if request.priority:
        row["priority"] = request.priority
    if request.session is not None:
        row["session"] = request.session
    if request.blocks:
        row |= {"blocks": list(request.blocks), "block_tokens": request.block_tokens}
    return row


def _request(number: int, row: dict[str, Any]) -> TraceRequest:
    unknown = {name: value for name, value in row.items() if name not in _KEYS}
    if unknown:
        raise BrokenRow(f"unknown fields {', '.join(f'{name} ({shown(unknown[name])})' for name in sorted(unknown))}")
    prompt = text_of(row, "prompt")
    if prompt is not None and row.get("prompt_tokens") is not None:
        raise BrokenRow(f"prompt_tokens is {shown(row['prompt_tokens'])} beside a prompt, which is counted")
    tenant = text_of(row, "tenant") or None
    count = 0 if prompt is not None else tokens(field_of(row, "prompt_tokens"), "prompt_tokens")
    return TraceRequest(
        line=number,
        arrival=seconds(field_of(row, "at"), "at"),
        prompt_tokens=count,
        output_tokens=tokens(field_of(row, "output_tokens"), "output_tokens"),
        klass=text_of(row, "class") or tenant or "default",
        tenant=tenant,
        priority=priority_of(row.get("priority"), "priority"),
        session=text_of(row, "session"),
        prompt=prompt,
        **_sharing(row, count),
    )


def _sharing(row: dict[str, Any], count: int) -> dict[str, Any]:
    blocks, size = row.get("blocks"), row.get("block_tokens")
    if blocks is None:
        if size is not None:
            raise BrokenRow(f"block_tokens is {shown(size)} without blocks")
        return {}
    if not count:
        raise BrokenRow(f"blocks is {shown(blocks)} beside a prompt, whose text says what is shared")
    size = tokens(field_of(row, "block_tokens"), "block_tokens")
    return {"blocks": block_ids(blocks, "blocks", count, size), "block_tokens": size}
