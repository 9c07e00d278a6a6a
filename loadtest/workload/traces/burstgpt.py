"""BurstGPT (Wang et al., KDD 2025), both versions of its CSV: with and without `Session ID` and `Elapsed time`.

Stamps are whole seconds of local time and need not begin at 0. A row without response tokens is a failed request: there is no
length to replay, so it is left out and reported.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from loadtest.workload.traces import TraceRequest
from loadtest.workload.traces.problems import (
    BrokenRow,
    Problems,
    TraceError,
    cells,
    number,
    numbered,
    seconds,
    session_of,
    shown,
    tokens,
)

NAME = "burstgpt"
TICK = 1.0
TIMED = True
_REQUIRED = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def sniff(first: str) -> bool:
    """Whether the file's first line is this format's."""
    try:
        columns = cells(first)
    except BrokenRow:
        return False
    return columns[:1] == ["Timestamp"] and set(_REQUIRED) <= set(columns)


def read(path: Path, problems: Problems) -> Iterator[TraceRequest]:
    """Its requests with the file's own stamps, in seconds. Raises TraceError without the header."""
    lines = numbered(path)
    _, header = next(lines, (0, ""))
    if not sniff(header):
        raise TraceError(f"{path}, line 1: {shown(header)} does not begin with the columns {', '.join(_REQUIRED)}")
    columns = cells(header)
    for line, text in lines:
        try:
            request = _request(line, cells(text), columns)
        except BrokenRow as error:
            problems.broken(line, str(error))
            continue
        if request is None:
            problems.left_out(line, "a failed request: no response tokens")
        else:
            yield request


def _request(line: int, values: Sequence[str], columns: Sequence[str]) -> TraceRequest | None:
    if len(values) != len(columns):
        raise BrokenRow(f"{shown(','.join(values))} has {len(values)} columns instead of {len(columns)}")
    row = dict(zip(columns, values, strict=True))
    arrival = seconds(number(row["Timestamp"], "Timestamp"), "Timestamp")
    prompt, output, total = (
        tokens(number(row[name], name), name, least=0) for name in ("Request tokens", "Response tokens", "Total tokens")
    )
    if total != prompt + output:
        raise BrokenRow(f"Total tokens is {total}, and Request tokens + Response tokens is {prompt + output}")
    if output == 0:
        return None
    if prompt == 0:
        raise BrokenRow("Request tokens is 0 though there is a response")
    return TraceRequest(
        line=line,
        arrival=arrival,
        prompt_tokens=prompt,
        output_tokens=output,
        klass=row["Model"] or "default",
        session=session_of(row.get("Session ID"), "Session ID"),
    )
