"""Mooncake's traces (Qin et al., FAST 2025): JSON lines whose `hash_ids` name the prompt's blocks of 512 tokens.

Equal ids stand for equal prefixes. Stamps are milliseconds in ticks of about 3 s: all rows of a tick share one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import (
    BrokenRow,
    Problems,
    block_ids,
    field_of,
    json_object,
    numbered,
    seconds,
    tokens,
)

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
            yield _request(number, json_object(line))
        except BrokenRow as error:
            problems.broken(number, str(error))


def _request(number: int, row: dict[str, Any]) -> TraceRequest:
    prompt = tokens(field_of(row, "input_length"), "input_length")
    return TraceRequest(
        line=number,
        arrival=seconds(field_of(row, "timestamp"), "timestamp") / 1000,
        prompt_tokens=prompt,
        output_tokens=tokens(field_of(row, "output_length"), "output_length"),
        blocks=block_ids(field_of(row, "hash_ids"), "hash_ids", prompt, BLOCK_TOKENS),
        block_tokens=BLOCK_TOKENS,
    )
