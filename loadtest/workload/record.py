"""`headrace loadtest record`: makes a trace from the server's access log, which has no prompts.

A line is written when its request ends and says how long the request took, hence when it arrived. Lines are text, with stamps of
local time, or JSON (`--log-format json`). The log's token counts are sums over a request's sequences; the trace has them divided by
the number of sequences. With `--log-blocks` lines also have hashes of the prompt's blocks and of its session: the trace then has
numbers in their place, equal where they are, so that it shares what the prompts shared.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import count
from pathlib import Path

from loadtest.workload.traces import TraceRequest, own

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) \w+ headrace\.access: (.*)")
_CLASSES = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}


def parse_log(lines: Iterable[str]) -> list[TraceRequest]:
    """The answered requests of an access log, by arrival in seconds from the first; other lines are skipped."""
    numbers = _Numbers()
    found = [
        request for number, line in enumerate(lines, 1) if (request := _request(number, line, numbers)) is not None
    ]
    found.sort(key=lambda request: request.arrival)
    return [replace(each, arrival=round(each.arrival - found[0].arrival, 4)) for each in found]


class _Numbers:
    """Numbers in place of hashes, equal where they are."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}
        self._next = count()

    def blocks(self, names: Iterable[str], wanted: int) -> tuple[int, ...]:
        """Those of a prompt of `wanted` blocks; those without a name, such as the last one that is not full, are its own."""
        found = [self._known.setdefault(name, next(self._next)) for name in names][:wanted]
        return (*found, *(next(self._next) for _ in range(wanted - len(found))))


def _request(number: int, line: str, numbers: _Numbers) -> TraceRequest | None:
    ended, pairs = _line(line)
    klass = _CLASSES.get(pairs.get("path", ""))
    try:
        sequences = int(pairs.get("sequences", 0))
        prompt, output = (int(pairs.get(f"{name}_tokens", 0)) for name in ("prompt", "completion"))
        took, block_tokens = float(pairs["ms"]) / 1000, int(pairs.get("block_tokens", 0))
    except (KeyError, ValueError):
        return None
    if klass is None or sequences < 1 or prompt < sequences or output < sequences or block_tokens < 0:
        return None
    prompt //= sequences
    names = [name for name in pairs.get("blocks", "").split(",") if name]
    return TraceRequest(
        line=number,
        arrival=ended - took,
        prompt_tokens=prompt,
        output_tokens=output // sequences,
        klass=klass,
        session=pairs.get("session") or None,
        blocks=numbers.blocks(names, -(-prompt // block_tokens)) if block_tokens else (),
        block_tokens=block_tokens,
    )


def _line(line: str) -> tuple[float, dict[str, str]]:
    """When a line of the access log was written, in seconds, and its fields; no fields: it is another line."""
    if (match := _LINE.match(line)) is not None:
        ended = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(match[2]) / 1000
        return ended, dict(pair.partition("=")[::2] for pair in match[3].split(" "))
    try:
        fields = json.loads(line) if line.startswith("{") else None
        if not isinstance(fields, dict) or fields.get("logger") != "headrace.access":
            return 0.0, {}
        ended = datetime.fromisoformat(fields["time"]).timestamp()
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0, {}
    return ended, {name: str(value) for name, value in fields.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace. Returns the exit code: 2 if a file cannot be read or written, or the log has no answered request."""
    parser = argparse.ArgumentParser(
        prog="headrace loadtest record",
        description="Make a trace from the access log of `headrace serve --access-log`.",
    )
    parser.add_argument("log", type=Path, help="the server's stderr, kept in a file")
    parser.add_argument("--output", type=Path, required=True, metavar="TRACE", help="where the trace goes")
    options = parser.parse_args(argv)
    try:
        with options.log.open(encoding="utf-8", errors="replace") as file:
            requests = parse_log(file)
    except OSError as error:
        print(f"headrace loadtest record: {error}", file=sys.stderr)
        return 2
    if not requests:
        print(f"headrace loadtest record: {options.log} has no line of an answered request", file=sys.stderr)
        return 2
    try:
        own.write(options.output, requests)
    except OSError as error:
        print(f"headrace loadtest record: --output {options.output}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(f"{len(requests)} requests in {requests[-1].arrival:.1f} s: {options.output}")
    return 0
