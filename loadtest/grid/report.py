"""What the combinations did, side by side."""

from collections.abc import Mapping, Sequence

from loadtest.report.compare import Side, cautions, compare, render_html, section
from loadtest.report.metrics import summarize
from loadtest.report.records import LoadRun
from loadtest.report.rows import Section, figure, percent
from loadtest.report.trust import failed_share

PAGE = "grid.html"
_CONFIDENCE = 0.99
_HEADER = (
    "flags",
    "TTFT p50 ms",
    "p99",
    "ITL p50 ms",
    "p99",
    "TPOT p50 ms",
    "p99",
    "tok/s",
    "in SLO",
    "failed",
    "CPUs",
    "GPUs busy",
)


def measured(sides: Sequence[Sequence[LoadRun]]) -> Section:
    """A row for each combination, of its first run."""
    return Section("Combinations", _HEADER, [_row(runs[0]) for runs in sides])


def render(sides: Sequence[Sequence[LoadRun]], failed: Mapping[str, str]) -> str:
    """The page: figures of all, each against the first, pictures, and why some are missing."""
    found = [Side.of(runs, chr(ord("A") + place)) for place, runs in enumerate(sides)]
    tables = [measured(sides)]
    for side in found[1:]:
        differences = compare(found[0], side, confidence=_CONFIDENCE)
        tables.append(section(found[0], side, differences, _CONFIDENCE))
    notes = [f"{name} failed: {reason}" for name, reason in failed.items()]
    return render_html(found, tables, [*notes, *cautions(found)])


def _row(run: LoadRun) -> tuple[str, ...]:
    summary = summarize(run)
    cells: list[str] = []
    for name in ("ttft", "itl", "tpot"):
        spread = summary.latencies.get(name, {}).get("all")
        cells += ["", ""] if spread is None else [figure(1e3 * spread.p50), figure(1e3 * spread.p99)]
    judged = [each for each in summary.goodput if each.klass == "all"] or summary.goodput
    busy = [share for name, share in run.server.items() if name.endswith("_busy_mean")]
    return (
        run.label,
        *cells,
        figure(summary.output_rate),
        percent(judged[0].attainment) if judged else "",
        percent(failed_share(run)),
        figure(run.server["cpu_mean"]) if "cpu_mean" in run.server else "",
        percent(sum(busy) / len(busy)) if busy else "",
    )
