"""What a sweep found: attainment and goodput against the rate, for one server or several."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape

from matplotlib.ticker import PercentFormatter

from loadtest.report.pages import page
from loadtest.report.pages.drawing import COLOURS, Drawing, legend_above, new_drawing
from loadtest.report.rows import Section, figure, percent
from loadtest.search import End, RateSearch, SearchResult, Trial

ENDS = {
    End.FOUND: "the next higher rate that was tried is not sustained",
    End.CLIENT: "the client could not drive a higher rate",
    End.HIGHEST: "the highest rate that may be tried is sustained",
    End.NONE: "not even the lowest rate is sustained",
    End.INTERRUPTED: "the sweep was interrupted",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a sweep: the rate asked for (requests per second), the share that met its objective, and their rate."""

    server: str
    rate: float
    attainment: float
    goodput: float


def verdict(name: str, found: SearchResult) -> str:
    """The outcome in a sentence, and how sure it is in another."""
    if found.rate is None and found.above is None:
        return f"{name}: nothing is known ({ENDS[found.end]})"
    if found.rate is None:
        return f"{name}: no rate is sustained, down to {figure(found.above or 0)} requests/s ({ENDS[found.end]})"
    above = "" if found.above is None else f", not {figure(found.above)}"
    return f"{name}: {figure(found.rate)} requests/s are sustained{above} ({ENDS[found.end]}). {_sure(found)}"


def _sure(found: SearchResult) -> str:
    held, failed = found.sure
    if held is None:
        return "Too few requests to be sure of any rate at 95 %: more of them (--least, --seconds) would say"
    return f"At 95 % it is at least {figure(held)}" + (f" and below {figure(failed)}" if failed is not None else "")


def trials(name: str, search: RateSearch) -> Section:
    """The trials of one search as a table, in the order in which they were measured."""
    rows = []
    for trial in search.trials:
        runs = ", ".join(percent(attainment) for attainment in trial.attainments)
        interval = " … ".join(percent(bound) for bound in trial.interval) if trial.runs else ""
        told = {True: "yes", False: "no", None: "open"}[search.sustained(trial)]
        rows.append((figure(trial.rate), runs, interval, "the client could not" if trial.undriven else told))
    return Section(name, ("requests/s", "attainment of each run", "95 % interval", "sustained"), rows)


def curves(points: Sequence[Point], outcomes: Mapping[str, SearchResult], goal: float) -> list[Drawing]:
    """Two panels against the rate: attainment, and goodput; a dot per run, a line at each server's outcome."""
    drawn = [new_drawing("attainment", "attainment"), new_drawing("goodput", "met their objective / s")]
    attainment, goodput = (each.panel for each in drawn)
    for place, (name, found) in enumerate(outcomes.items()):
        colour = COLOURS[place % len(COLOURS)]
        own = sorted((each for each in points if each.server == name), key=lambda each: each.rate)
        rates = [each.rate for each in own]
        for panel, values in ((attainment, [e.attainment for e in own]), (goodput, [e.goodput for e in own])):
            panel.plot(rates, values, "o", markersize=6, alpha=0.8, color=colour, label=name)
            if found.rate is not None:
                panel.axvline(found.rate, color=colour, linewidth=1.1)
    attainment.axhline(goal, color="black", linestyle="--", linewidth=0.9, label="goal")
    attainment.set(ylim=(0, 1.03))
    attainment.yaxis.set_major_formatter(PercentFormatter(1))
    most = max((each.rate for each in points), default=1.0)
    goodput.plot([0, most], [0, most], color="black", linestyle="--", linewidth=0.9, label="all meet it")
    goodput.set(ylim=(0, None))
    for panel in (attainment, goodput):
        panel.set(xlabel="requests / s", xlim=(0, most * 1.05))
        legend_above(panel)
    return drawn


def render(
    searches: Mapping[str, RateSearch],
    outcomes: Mapping[str, SearchResult],
    points: Sequence[Point],
    notes: Sequence[str],
) -> str:
    """The sweep as a self-contained HTML page."""
    goal = next(iter(searches.values())).goal
    parts = [f"<h1>Capacity at {percent(goal)} attainment</h1>"]
    parts += [f"<p>{escape(verdict(name, found))}</p>" for name, found in outcomes.items()]
    parts += [f'<p class="soft">{escape(note)}</p>' for note in notes]
    caption = "One dot per run; the vertical lines are the highest rates sustained."
    parts.append(page.picture("Attainment and goodput against the rate", caption, curves(points, outcomes, goal)))
    parts.append(page.side_by_side(page.table(trials(name, search)) for name, search in searches.items()))
    return page.page("Capacity", parts)


def as_json(
    searches: Mapping[str, RateSearch], outcomes: Mapping[str, SearchResult], points: Sequence[Point]
) -> dict[str, object]:
    """The whole sweep as JSON values."""
    return {
        "schema": "headrace.sweep/1",
        "servers": {
            name: {**asdict(outcomes[name]), "goal": search.goal, "trials": [_trial(trial) for trial in search.trials]}
            for name, search in searches.items()
        },
        "runs": [asdict(point) for point in points],
    }


def _trial(trial: Trial) -> dict[str, object]:
    return {
        "rate": trial.rate,
        "attainments": trial.attainments,
        "interval": trial.interval if trial.runs else None,
        "undriven": trial.undriven,
    }
