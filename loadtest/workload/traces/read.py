"""Reads a trace of any known format."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loadtest.workload.traces import (
    Trace,
    TraceRequest,
    azure,
    burstgpt,
    columns,
    mooncake,
    own,
    prompts_jsonl,
    sharegpt,
)
from loadtest.workload.traces.problems import Problems, TraceError, numbered


@dataclass(frozen=True, slots=True)
class Format:
    """How one format is recognised and read. `tick` is its nominal resolution in seconds."""

    name: str
    sniff: Callable[[str], bool]
    read: Callable[[Path, Problems], Iterable[TraceRequest]]
    tick: Callable[[Path], float]
    timed: bool


# In the order in which they are tried: the more specific first.
FORMATS = {
    each.name: each
    for each in (
        Format(own.NAME, own.sniff, own.read, own.tick, own.TIMED),
        Format(burstgpt.NAME, burstgpt.sniff, burstgpt.read, lambda _: burstgpt.TICK, burstgpt.TIMED),
        Format(azure.NAME, azure.sniff, azure.read, lambda _: azure.TICK, azure.TIMED),
        Format(mooncake.NAME, mooncake.sniff, mooncake.read, lambda _: mooncake.TICK, mooncake.TIMED),
        Format(sharegpt.NAME, sharegpt.sniff, sharegpt.read, lambda _: sharegpt.TICK, sharegpt.TIMED),
        Format(
            prompts_jsonl.NAME,
            prompts_jsonl.sniff,
            prompts_jsonl.read,
            lambda _: prompts_jsonl.TICK,
            prompts_jsonl.TIMED,
        ),
    )
}


def read_trace(path: str | Path, format: str | Format | None = None, *, strict: bool = False) -> Trace:
    """Read a trace; its requests are in order of arrival, the first at 0.

    Args:
        path: the file.
        format: a name from `FORMATS`, or one of the user's own (`by_columns`); by default recognised by the file's first line.
        strict: stop at the first broken row. Failed requests, which BurstGPT keeps, are not broken rows.

    Raises:
        TraceError: no such file, no known format, no request in it, or a broken row with `strict`.
    """
    refuse_stream(str(path))
    path = Path(path)
    if not path.is_file():
        raise TraceError(f"{path}: no such file")
    chosen = _format(path, format)
    tick = chosen.tick(path)
    problems = Problems(path.name, strict=strict)
    requests = sorted(chosen.read(path, problems), key=lambda request: request.arrival)
    if not requests:
        first = f"; {problems.found[0].text}" if problems.found else ""
        raise TraceError(f"{path} has no request that can be replayed{first}")
    start = requests[0].arrival
    return Trace(
        name=path.name,
        format=chosen.name,
        requests=[replace(request, arrival=request.arrival - start) for request in requests],
        tick=tick,
        timed=chosen.timed,
        problems=problems.found,
    )


def refuse_stream(name: str) -> None:
    """Raise TraceError for what is no file, and say what to do instead."""
    if name == "-":
        raise TraceError(
            "a trace is a file, since it is read more than once: save what is piped, such as `... > trace.jsonl`"
        )
    if "://" in name:
        raise TraceError(f"{name} is an address, and a trace is a file: `curl -LO {name}` fetches it")


def by_columns(text: str) -> Format:
    """The format that `--columns` describes. Raises TraceError."""
    chosen = columns.parse_columns(text)
    return Format(columns.NAME, lambda _: False, partial(columns.read, columns=chosen), lambda _: 0.0, chosen.timed)


def _format(path: Path, name: str | Format | None) -> Format:
    if isinstance(name, Format):
        return name
    if name is not None:
        if name not in FORMATS:
            raise TraceError(f"unknown format {name!r}; known are {', '.join(FORMATS)}")
        return FORMATS[name]
    first = next((line for _, line in numbered(path)), "")
    for each in FORMATS.values():
        if each.sniff(first):
            return each
    known = ", ".join(FORMATS)
    raise TraceError(
        f"{path} is of no known format ({known}); it begins with {first[:60]!r}. --columns says what is in which column: "
        f"{columns.EXAMPLE}"
    )
