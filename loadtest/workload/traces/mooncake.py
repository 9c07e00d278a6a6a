"""Mooncake's traces (Qin et al., FAST 2025): JSON lines whose `hash_ids` name the prompt's blocks of 512 tokens.

Equal ids stand for equal prefixes. Stamps are milliseconds in ticks of about 3 s: all rows of a tick share one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, field_of, numbered, seconds, tokens

NAME = "mooncake"
TICK = 3.0
TIMED = True
BLOCK_TOKENS = 512


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    return first.startswith("{") and '"hash_ids"' in first and '"input_length"' in first


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests, by seconds from the trace's start."""
    for number, line in numbered(path):
        try:
            yield _request(number, _object(line))
        except BrokenRow as error:
            problems.broken(number, str(error))


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BrokenRow(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise BrokenRow("not a JSON object")
    return row


def _request(number: int, row: dict[str, Any]) -> TraceRequest:
    prompt = tokens(field_of(row, "input_length"), "input_length")
    blocks = field_of(row, "hash_ids")
    if not isinstance(blocks, list) or not all(isinstance(block, int) for block in blocks):
        raise BrokenRow("hash_ids is not a list of whole numbers")
    needed = -(-prompt // BLOCK_TOKENS)
    if len(blocks) != needed:
        raise BrokenRow(f"{len(blocks)} hash_ids; {prompt} tokens are {needed} blocks of {BLOCK_TOKENS}")
    return TraceRequest(
        line=number,
        arrival=seconds(field_of(row, "timestamp"), "timestamp") / 1000,
        prompt_tokens=prompt,
        output_tokens=tokens(field_of(row, "output_length"), "output_length"),
        blocks=tuple(blocks),
        block_tokens=BLOCK_TOKENS,
    )
