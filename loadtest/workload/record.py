"""`headrace loadtest record`: makes a trace from the server's access log. The log has no prompts, so the trace has lengths only.

A line is written when its request ends and says how long the request took, hence when it arrived. Stamps are local time with
milliseconds. The log's token counts are sums over a request's sequences; the trace has them divided by the number of sequences.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from loadtest.workload.traces import TraceRequest, own

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) \w+ headrace\.access: (.*)")
_CLASSES = {"/v1/completions": "completions", "/v1/chat/completions": "chat"}


def parse_log(lines: Iterable[str]) -> list[TraceRequest]:
    """The answered requests of an access log, by arrival in seconds from the first; other lines are skipped."""
    found = [request for number, line in enumerate(lines, 1) if (request := _request(number, line)) is not None]
    found.sort(key=lambda request: request.arrival)
    return [replace(each, arrival=round(each.arrival - found[0].arrival, 4)) for each in found]


def _request(number: int, line: str) -> TraceRequest | None:
    match = _LINE.match(line)
    if match is None:
        return None
    pairs = dict(pair.partition("=")[::2] for pair in match[3].split(" "))
    klass = _CLASSES.get(pairs.get("path", ""))
    try:
        sequences = int(pairs.get("sequences", 0))
        prompt, output = (int(pairs.get(f"{name}_tokens", 0)) for name in ("prompt", "completion"))
        took = float(pairs["ms"]) / 1000
    except (KeyError, ValueError):
        return None
    if klass is None or not sequences or prompt < sequences or output < sequences:
        return None
    ended = datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S").timestamp() + int(match[2]) / 1000
    return TraceRequest(
        line=number,
        arrival=ended - took,
        prompt_tokens=prompt // sequences,
        output_tokens=output // sequences,
        klass=klass,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Write the trace. Returns the exit code: 2 if the log cannot be read or has no answered request."""
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
    own.write(options.output, requests)
    print(f"{len(requests)} requests in {requests[-1].arrival:.1f} s: {options.output}")
    return 0
