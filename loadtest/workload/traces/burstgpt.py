"""BurstGPT (Wang et al., KDD 2025), both versions of its CSV: with and without `Session ID` and `Elapsed time`.

Stamps are whole seconds of local time and need not begin at 0. A row without response tokens is a failed request: there is no
length to replay, so it is left out and reported.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import BrokenRow, Problems, TraceError, numbered, seconds, tokens

NAME = "burstgpt"
TICK = 1.0
TIMED = True
_REQUIRED = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    return first.startswith("Timestamp,") and set(_REQUIRED) <= set(first.split(","))


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests with the file's own stamps, in seconds. Raises TraceError without the header."""
    lines = numbered(path)
    _, header = next(lines, (0, ""))
    if not sniff(header):
        raise TraceError(f"{path} does not begin with the columns {', '.join(_REQUIRED)}")
    columns = header.split(",")
    for number, line in lines:
        try:
            request = _request(number, next(csv.reader([line])), columns)
        except BrokenRow as error:
            problems.broken(number, str(error))
            continue
        if request is None:
            problems.left_out(number, "a failed request: no response tokens")
        else:
            yield request


def _request(number: int, cells: Sequence[str], columns: Sequence[str]) -> TraceRequest | None:
    if len(cells) != len(columns):
        raise BrokenRow(f"{len(cells)} columns instead of {len(columns)}")
    row = dict(zip(columns, cells, strict=True))
    arrival = seconds(row["Timestamp"], "Timestamp")
    prompt = tokens(row["Request tokens"], "Request tokens", least=0)
    output = tokens(row["Response tokens"], "Response tokens", least=0)
    total = tokens(row["Total tokens"], "Total tokens", least=0)
    if total != prompt + output:
        raise BrokenRow(f"Total tokens is {total}, and Request tokens + Response tokens is {prompt + output}")
    if output == 0:
        return None
    if prompt == 0:
        raise BrokenRow("Request tokens is 0 though there is a response")
    return TraceRequest(
        line=number,
        arrival=arrival,
        prompt_tokens=prompt,
        output_tokens=output,
        klass=row["Model"] or "default",
        session=row.get("Session ID") or None,
    )
