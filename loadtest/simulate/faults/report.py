"""What the clients saw: those with whose requests another replica went on, and all others, by when they came."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from math import inf

import numpy as np

from loadtest.report.records import LoadRun, RequestRecord
from loadtest.report.rows import Section, figure
from loadtest.simulate.faults.outages import Outages

_HEADER = ("arrived", "requests", "TTFT p50 s", "TTFT p99 s", "longest gap s", "failed", "in SLO", "goodput /s")


def outage_section(run: LoadRun, outages: Outages) -> Section:
    """A row for each time from one change to the next. In goodput, requests that were replayed count when they came.

    `longest gap`: between two tokens of one answer.
    """
    changes = sorted({time for each in outages.failures for time in (each.at, each.end) if time < inf})
    last = max(record.intended for record in run.records)
    bounds = [0.0, *(time for time in changes if time <= last), max(last, 1e-9)]
    rows = [
        _row(f"{begin:.0f} to {end:.0f} s", run, _between(run.records, begin, end, last), end - begin)
        for begin, end in pairwise(bounds)
    ]
    replayed = list(outages.replayed.values())
    title = f"Failures: {len(replayed)} requests replayed, {outages.recomputed:,} tokens computed again"
    return Section(title, _HEADER, [*rows, _row("replayed", run, replayed, None)])


def _between(records: Iterable[RequestRecord], begin: float, end: float, last: float) -> list[RequestRecord]:
    return [record for record in records if begin <= record.intended < end or record.intended == end == last]


def _row(name: str, run: LoadRun, records: Sequence[RequestRecord], seconds: float | None) -> tuple[str, ...]:
    times = [record.ttft for record in records if record.ttft is not None]
    p50, p99 = (f"{np.percentile(times, share):.3f}" if times else "" for share in (50, 99))
    gap = max((gap for record in records for gap in record.gaps), default=None)
    failed = sum(record.error is not None for record in records)
    judged = [verdict for record in records for verdict in _verdicts(run, record)]
    share = f"{sum(judged) / len(judged):.1%}" if judged else ""
    goodput = figure(sum(judged) / seconds) if judged and seconds else ""
    longest = "" if gap is None else f"{gap:.3f}"
    return (name, f"{len(records):,}", p50, p99, longest, f"{failed:,}", share, goodput)


def _verdicts(run: LoadRun, record: RequestRecord) -> Iterator[bool]:
    objective = run.objective(record)
    if objective is not None:
        yield objective.met_by(record)
