"""A run's report as an HTML page."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape

from loadtest.report.metrics import ALL, Summary
from loadtest.report.pages import page
from loadtest.report.pages.plots import Plot
from loadtest.report.records import SCHEMA, LoadRun, RequestRecord
from loadtest.report.rows import Section, count, figure, milliseconds, percent, sections
from loadtest.report.trust import cautions, measured_text

NARROW = {"Load", "Tokens", "Correctness", "Failures", "Objectives missed", "The client"}
FIRST = {"Latency", "Objectives"}
EXAMPLES = 10  # bad requests shown
PROBLEMS = 20  # left-out rows of the trace shown
NOTE = (
    "Latencies are those of complete answers and count from the time at which the plan wanted a request sent, so that neither a "
    "slow client nor a slow server hides waiting. Failed requests miss their objective. Percentiles are interpolated "
    "linearly; gaps are between the events of one stream."
)


def render(run: LoadRun, summary: Summary, pictures: list[Plot]) -> str:
    """The page as HTML."""
    return page.page(f"{run.label} · load test", _parts(run, summary, pictures))


def _parts(run: LoadRun, summary: Summary, pictures: list[Plot]) -> Iterator[str]:
    started = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    yield f"<h1>{escape(run.label)}</h1>"
    yield f'<p class="soft">{escape(run.target)} · started {started} · {run.duration:,.1f} s · {SCHEMA}</p>'
    if said := measured_text(run):
        yield f'<p class="soft">{escape(said)}</p>'
    if run.invalid:
        yield page.warning("This run is invalid: do not trust its figures.", run.invalid)
    if found := cautions(run):
        yield page.warning("Caution", found)
    yield page.tiles(key_figures(summary))
    made = sections(run, summary)
    yield page.side_by_side(page.table(section) for section in made if section.title in NARROW)
    yield from (page.table(section) for section in made if section.title in FIRST)
    yield from (page.picture(plot.title, plot.caption, plot.drawings) for plot in pictures)
    yield from (page.table(section) for section in made if section.title not in NARROW | FIRST)
    bad = examples(run)
    if bad.rows:
        yield page.table(bad)
    if run.problems:
        shown = run.problems[:PROBLEMS]
        more = [f"and {len(run.problems) - PROBLEMS:,} more"] if len(run.problems) > PROBLEMS else []
        yield page.text(f"Rows of the trace left out: {len(run.problems):,}", "\n".join([*shown, *more]))
    yield page.text("The plan", json.dumps(run.plan, indent=2, ensure_ascii=False, default=str))
    yield f'<p class="soft" style="margin-top:16px">{escape(NOTE)}</p>'


def key_figures(summary: Summary) -> list[tuple[str, str]]:
    """What a reader looks for first: names and values."""
    latencies = summary.latencies
    awaited = summary.requests - summary.unfit - summary.left
    entries = [(f"of {count(awaited)} answered", percent(summary.whole / awaited if awaited else 0.0))]
    if summary.unfit:
        entries.append(("longer than the context", count(summary.unfit)))
    if summary.attainment is not None:
        entries += [
            ("attainment", percent(summary.attainment)),
            ("goodput, requests/s", figure(summary.goodput[-1].rate)),
        ]
    entries.append(("output tokens/s", figure(summary.output_rate)))
    for name in ("ttft", "tpot"):
        if name in latencies:
            spread = latencies[name][ALL]
            entries += [
                (f"{name.upper()} p50", f"{milliseconds(spread.p50)} ms"),
                (f"{name.upper()} p99", f"{milliseconds(spread.p99)} ms"),
            ]
    return entries


def examples(run: LoadRun) -> Section:
    """The first requests that failed or broke a rule, with what is known about them."""
    bad = [record for record in run.records if record.awaited and (not record.ok or record.violations)]
    rows = [_example(record) for record in bad[:EXAMPLES]]
    return Section("The first bad requests", ("request", "at s", "class", "status", "tokens", "what happened"), rows)


def _example(record: RequestRecord) -> tuple[str, ...]:
    said = [f"{record.error}: {record.detail or ''}"] if record.error else []
    status = "" if record.status is None else str(record.status)
    received = sum(tokens for _, tokens in record.tokens)
    return (
        f"#{record.index}",
        figure(record.intended),
        record.klass,
        status,
        count(received),
        "; ".join([*said, *record.violations])[:400],
    )
