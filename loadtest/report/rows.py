"""The figures of a summary as text: the sections that the terminal and the page both show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from loadtest.report.metrics import ALL, Goodput, Spread, Summary
from loadtest.report.records import LoadRun, Objective

NAMES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "gap between events",
    "e2e": "end to end",
    "queue": "server: queue",
    "prefill": "server: prefill",
    "decode": "server: decode",
    "lateness": "client's lateness",
}
OF_CLASSES = ("ttft", "tpot", "itl", "e2e")  # shown for each class as well
OBJECTIVES = ("class", "objective", "requests", "met", "share", "met / s", "their tok/s")
MOST_ROWS = 12  # most rows of messages and of counters; the JSON has them all


@dataclass(frozen=True, slots=True)
class Section:
    """A table: heading, column names, and rows with as many cells; the first column is text."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def figures(self, place: int) -> bool:
        """Whether the column at `place` holds figures, which are aligned right."""
        cells = [row[place] for row in self.rows if row[place]]
        return place > 0 and all(cell.lstrip("-+−> ")[:1].isdigit() for cell in cells)


def sections(run: LoadRun, summary: Summary) -> list[Section]:
    """All sections that are not empty."""
    made = [
        Section("Load", ("", "requests", "per second"), load(run, summary)),
        Section("Tokens", ("", "per second"), tokens(summary)),
        Section("Objectives", OBJECTIVES, [_goodput(row) for row in summary.goodput]),
        Section("Objectives missed", ("class", "by", "requests"), missed(summary)),
        Section("Latency", ("milliseconds", *(each.name for each in fields(Spread))), latency(summary)),
        Section("Correctness", ("", "requests"), correctness(summary)),
        Section("The client", ("", "value"), client(run.client)),
        Section("The server's processes", ("", "value"), server(run.server)),
        Section("Failures", ("class", "requests"), _counts(summary.errors)),
        Section("What the failures said", ("message (N: a number)", "requests"), _counts(summary.details)),
        Section("Rules broken", ("rule (N: a number)", "times"), _counts(summary.violations)),
        Section("The server's counters", ("counter", "before", "after", "change"), _scraped(summary)),
    ]
    return [section for section in made if section.rows]


def load(run: LoadRun, summary: Summary) -> list[tuple[str, ...]]:
    """What was asked for and what was answered."""
    return [
        ("planned", count(summary.requests), "" if summary.offered is None else figure(summary.offered)),
        ("answered in full", count(summary.whole), figure(summary.request_rate)),
        ("failed", count(summary.failed), figure(summary.failed / run.duration) if run.duration else ""),
        ("longer than the context", count(summary.unfit), ""),
        *([("left by their clients", count(summary.left), "")] if summary.left else []),
        ("most at once", count(summary.peak), ""),
    ]


def tokens(summary: Summary) -> list[tuple[str, ...]]:
    """Throughput, and the cached share of the prompts."""
    rows = [("output tokens", figure(summary.output_rate))]
    if summary.prompt_rate is not None and summary.total_rate is not None:
        rows += [("prompt tokens", figure(summary.prompt_rate)), ("all tokens", figure(summary.total_rate))]
    if summary.cached_share is not None:
        rows.append(("cached share of the prompts", percent(summary.cached_share)))
    return [*rows]


def latency(summary: Summary) -> list[tuple[str, ...]]:
    """A row for each quantity, and below it one for each class if there are several."""
    rows = []
    for name, spreads in summary.latencies.items():
        rows.append((NAMES[name], *_spread(spreads[ALL])))
        shown = spreads if name in OF_CLASSES else {}
        rows += [(f"· {klass}", *_spread(spread)) for klass, spread in shown.items() if klass != ALL]
    return rows


def correctness(summary: Summary) -> list[tuple[str, ...]]:
    """Whether the answers were what they should be."""
    rows = [("break a rule", count(summary.violating))]
    if summary.asked_output is not None:
        rows.append(("output exactly as long as asked", percent(summary.asked_output)))
    if summary.asked_prompt is not None:
        rows.append(("prompt exactly as long as asked", percent(summary.asked_prompt)))
    reasons = summary.finish_reasons.items()
    rows += [
        (f"finish_reason {reason}", count(times)) for reason, times in reasons if reason != str(None)
    ]  # of vectors
    return [*rows]


def missed(summary: Summary) -> list[tuple[str, ...]]:
    """Why requests missed their objective; one that misses two bounds counts under both."""
    rows = [row for row in summary.goodput if row.klass != ALL]
    return [(row.klass, reason, count(times)) for row in rows for reason, times in row.missed.items()]


def client(health: Mapping[str, float]) -> list[tuple[str, ...]]:
    """How the client itself did: durations in milliseconds, shares in percent, counts; in the order of `health`."""
    rows = []
    for name, value in health.items():
        if name.startswith(("lateness", "loop_lag")):
            rows.append((name.replace("_", " ") + " (ms)", milliseconds(value)))
        elif name.endswith("_share"):
            rows.append((name.removesuffix("_share") + " of one processor", percent(value)))
        else:
            rows.append((name.replace("_", " "), figure(value) if value % 1 else count(value)))
    return [*rows]


def server(usage: Mapping[str, float]) -> list[tuple[str, ...]]:
    """What the server's processes used, in the order of `usage`: processors, bytes, shares of GPUs."""
    rows = []
    for name, value in usage.items():
        words = name.replace("cpu", "processors").replace("_", " ")
        if "memory" in name:
            rows.append((f"{words} (GiB)", figure(value / 2**30)))
        elif "busy" in name:
            rows.append((words, percent(value)))
        else:
            rows.append((words, figure(value) if value % 1 else count(value)))
    return [*rows]


def objective_text(objective: Objective) -> str:
    """`ttft ≤ 500 ms, tpot ≤ 50 ms`."""
    bounds = {each.name: getattr(objective, each.name) for each in fields(objective)}
    return ", ".join(f"{name} ≤ {value * 1000:g} ms" for name, value in bounds.items() if value is not None) or "whole"


def count(value: float) -> str:
    """`12,345`."""
    return f"{value:,.0f}"


def figure(value: float) -> str:
    """About four digits, without an exponent: `0.0512`, `12.35`, `12,346`."""
    if value == 0:
        return "0"
    decimals = next((places for places, limit in ((0, 1000), (1, 100), (2, 1)) if abs(value) >= limit), 4)
    return f"{value:,.{decimals}f}"


def milliseconds(seconds: float) -> str:
    """`seconds` in milliseconds, in the form of `figure`."""
    return figure(seconds * 1000)


def percent(share: float) -> str:
    """`93.2 %`; never `100.0 %` unless it is all."""
    text = f"{share * 100:.1f} %"
    return "> 99.9 %" if text == "100.0 %" and share < 1 else text


def _spread(spread: Spread) -> tuple[str, ...]:
    return (
        count(spread.count),
        *(milliseconds(getattr(spread, each.name)) for each in fields(spread) if each.name != "count"),
    )


def _goodput(row: Goodput) -> tuple[str, ...]:
    objective = objective_text(row.objective) if row.objective else ""
    figures = (count(row.requests), count(row.met), percent(row.attainment), figure(row.rate), figure(row.token_rate))
    return (row.klass, objective, *figures)


def _counts(counts: dict[str, int]) -> list[tuple[str, ...]]:
    rows = [(text, count(times)) for text, times in list(counts.items())[:MOST_ROWS]]
    left = list(counts.values())[MOST_ROWS:]
    return [*rows, (f"and {len(left)} more kinds", count(sum(left)))] if left else [*rows]


def _scraped(summary: Summary) -> list[tuple[str, ...]]:
    ranked = sorted(summary.scraped.items(), key=lambda item: -abs(item[1][1] - item[1][0]))
    rows = [(name, *(f"{value:,.9g}" for value in (before, after, after - before))) for name, (before, after) in ranked]
    return [*sorted(rows[: 2 * MOST_ROWS])]
