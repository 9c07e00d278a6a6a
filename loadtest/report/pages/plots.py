"""The pictures of a report: functions from runs to figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from loadtest.report.columns import Columns, concurrency
from loadtest.report.events import Floats
from loadtest.report.metrics import attainment_curve
from loadtest.report.pages.drawing import (
    COLOURS,
    GREY,
    RED,
    Drawing,
    dots,
    failures,
    legend_above,
    new_drawing,
    nothing,
    thousands,
    time_axis,
    time_bound,
)
from loadtest.report.records import LoadRun
from loadtest.report.series import Series, thinned

MOST_POINTS = 20_000
SCALES = np.geomspace(0.1, 10, 201)
TITLES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "gap between events",
    "e2e": "end to end",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture of several panels: heading, what it shows, and the panels."""

    title: str
    caption: str
    drawings: Sequence[Drawing]


@dataclass(frozen=True, slots=True)
class View:
    """A run, with what is computed from it once for all pictures: all its requests, those that count, its windows."""

    run: LoadRun
    columns: Columns
    counted: Columns
    series: Series

    @classmethod
    def of(cls, run: LoadRun, columns: Columns | None = None) -> "View":
        """Compute the series of `run`, and its arrays unless they are there already."""
        columns = columns or Columns.of(run)
        counted = run.measured
        return cls(run, columns, columns if counted is run else Columns.of(counted), Series.of(run, columns))


def plots(view: View) -> list[Plot]:
    """All pictures of a run, in the order of the page; goodput only if an objective judges something."""
    made = [
        latency_cdfs([view]),
        Plot(
            "Latency against arrivals",
            "The plan's arrivals; each request at its intended time; gaps between events at their ends.",
            [_arrivals(view), _ttft_over_time(view), _gaps_over_time(view)],
        ),
        Plot(
            "Throughput",
            "Tokens when they came, prompts when their first token came; requests when they ended.",
            [_output_rate(view), _prompt_rate(view), _request_rate(view)],
        ),
        Plot(
            "Concurrency, and the client's lateness",
            "Requests between their intended time and end, and those without a token yet; how late the client sent each.",
            [_in_flight(view), _lateness(view)],
        ),
    ]
    return [*made, goodput([view])] if view.columns.judged.any() else made


def latency_cdfs(views: Sequence[View]) -> Plot:
    """TTFT, TPOT, ITL, end to end; a line for each class if there is one run, else for each run."""
    curves = _curves(views)
    return Plot(
        "Latency distributions",
        "Share of complete answers at most that slow. Dashed: the objective (TPOT's, for gaps), if it is near.",
        [_cdf_of(name, curves) for name in TITLES],
    )


def _cdf_of(name: str, curves: Sequence["Curve"]) -> Drawing:
    drawing = new_drawing(f"{name}_cdf", f"{TITLES[name]} ({name.upper() if name != 'e2e' else name})")
    panel = drawing.panel
    for curve in curves:
        _cdf(panel, name, curve)
    panel.set(ylim=(0, 1.01))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    if not panel.has_data():
        nothing(panel)
        return drawing
    time_axis(panel, "x")
    if len(curves) > 1:
        panel.legend(loc="lower right", fontsize=9)
    for curve in curves:
        _bound(panel, "x", name, curve)
    return drawing


def _over_time(view: View, name: str, title: str) -> Drawing:
    """A panel from the run's start to its end."""
    drawing = new_drawing(name, title)
    drawing.panel.set(xlim=(0, float(view.series.start[-1]) + view.series.width), xlabel="seconds from the start")
    return drawing


def _arrivals(view: View) -> Drawing:
    drawing, series = _over_time(view, "arrivals", "arrivals / s"), view.series
    drawing.panel.bar(series.start, series.arrivals, series.width, align="edge", color=GREY)
    return drawing


def _ttft_over_time(view: View) -> Drawing:
    drawing = _over_time(view, "ttft", f"{TITLES['ttft']} (TTFT)")
    _scatter_ttft(drawing.panel, view)
    _latency(drawing.panel, view, "ttft", view.series.ttft)
    failures(drawing.panel, view.columns.intended[view.columns.failed])
    legend_above(drawing.panel)
    return drawing


def _gaps_over_time(view: View) -> Drawing:
    drawing = _over_time(view, "itl", f"{TITLES['itl']} (ITL)")
    _latency(drawing.panel, view, "itl", view.series.itl)
    legend_above(drawing.panel)
    return drawing


def _latency(panel: Axes, view: View, name: str, rows: dict[int, Floats]) -> None:
    """Its percentiles in each window, and its bound."""
    _percentile_lines(panel, view.series, rows)
    if panel.has_data():
        time_axis(panel, "y")
        _bound(panel, "y", name, Curve("", view, None, "black"))
    else:
        nothing(panel)


def _output_rate(view: View) -> Drawing:
    return _rate(view, "output", "output tokens / s", view.series.output_rate, COLOURS[0])


def _prompt_rate(view: View) -> Drawing:
    return _rate(view, "prompt", "prompt tokens / s", view.series.prompt_rate, COLOURS[4])


def _rate(view: View, name: str, title: str, values: Floats, colour: str) -> Drawing:
    drawing = _over_time(view, name, title)
    drawing.panel.plot(view.series.start + view.series.width / 2, values, color=colour)
    drawing.panel.set_ylim(0, None)
    thousands(drawing.panel)
    if not values.any():
        nothing(drawing.panel)
    return drawing


def _request_rate(view: View) -> Drawing:
    drawing, series = _over_time(view, "requests", "requests / s"), view.series
    panel = drawing.panel
    panel.step(series.start, series.arrivals, where="post", color=GREY, label="arrived")
    panel.plot(series.start + series.width / 2, series.completions, color=COLOURS[2], label="answered")
    if series.failures.any():
        panel.bar(series.start, series.failures, series.width, align="edge", color=RED, label="failed")
    panel.set_ylim(0, None)
    thousands(panel)
    legend_above(panel)
    return drawing


def _in_flight(view: View) -> Drawing:
    drawing, columns = _over_time(view, "concurrency", "requests at once"), view.columns
    panel = drawing.panel
    first = np.where(np.isfinite(columns.first), columns.first, columns.ended)
    for end, colour, label in ((columns.ended, COLOURS[0], "in flight"), (first, COLOURS[1], "without a token")):
        times, counts = concurrency(columns.intended, np.maximum(end, columns.intended))
        kept = thinned(times.size, MOST_POINTS)
        panel.fill_between(times[kept], counts[kept], step="post", color=colour, alpha=0.3, linewidth=0, label=label)
        panel.step(times[kept], counts[kept], where="post", color=colour, linewidth=0.9)
    panel.set_ylim(0, None)
    legend_above(panel)
    return drawing


def _lateness(view: View) -> Drawing:
    drawing, columns = _over_time(view, "lateness", "client's lateness (ms)"), view.columns
    kept = thinned(columns.intended.size, MOST_POINTS)
    dots(drawing.panel, columns.intended[kept], np.maximum(columns.lateness[kept], 0) * 1000, COLOURS[6])
    drawing.panel.set_ylim(0, None)
    return drawing


def goodput(views: Sequence[View]) -> Plot:
    """Attainment against the scale of the objectives, and goodput against the rate of arrivals."""
    return Plot(
        "Goodput and attainment",
        "Attainment with every bound multiplied; requests per second that met their objective, against those that arrived: one dot "
        "for each window of the run.",
        [_attainment(views), _goodput(views)],
    )


def _attainment(views: Sequence[View]) -> Drawing:
    drawing = new_drawing("attainment", "attainment")
    panel = drawing.panel
    for place, view in enumerate(views):
        colour = COLOURS[place % len(COLOURS)]
        panel.plot(SCALES, attainment_curve(view.counted, SCALES), color=colour, label=view.run.label)
    panel.set(xscale="log", xlim=(SCALES[0], SCALES[-1]), ylim=(0, 1.01), xlabel="bounds multiplied by")
    panel.axvline(1, color="black", linestyle="--", linewidth=0.9)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    if len(views) > 1:  # names of runs may be long: one below the other, where no curve is that begins at 0
        panel.legend(loc="lower right", fontsize=9)
    return drawing


def _goodput(views: Sequence[View]) -> Drawing:
    drawing = new_drawing("goodput", "met their objective / s")
    panel, most = drawing.panel, 0.0
    for place, view in enumerate(views):
        series = view.series
        filled = series.judged > 0
        dots(panel, series.judged[filled], series.good[filled], COLOURS[place % len(COLOURS)])
        most = max(most, float(series.judged.max(initial=0)))
    panel.plot([0, most], [0, most], color="black", linestyle="--", linewidth=0.9, label="all meet it")
    panel.set(xlabel="arrivals / s", xlim=(0, None), ylim=(0, None))
    legend_above(panel)
    return drawing


@dataclass(frozen=True, slots=True)
class Curve:
    """Whose distribution a line shows: a run's, or that of one of its classes."""

    label: str
    view: View
    klass: str | None
    colour: str


def _curves(views: Sequence[View]) -> list[Curve]:
    """The classes of a single run, unless they are too many lines to tell apart; or one curve per run."""
    classes = sorted(set(views[0].columns.klass.tolist()))
    if len(views) > 1:
        found: list[tuple[str, View, str | None]] = [(view.run.label, view, None) for view in views]
    elif 1 < len(classes) <= len(COLOURS):
        found = [(name, views[0], name) for name in classes]
    else:
        found = [("all", views[0], None)]
    return [Curve(*each, COLOURS[place % len(COLOURS)]) for place, each in enumerate(found)]


def _cdf(panel: Axes, name: str, curve: Curve) -> None:
    columns, klass = curve.view.counted, curve.klass
    chosen = columns.whole if klass is None else columns.whole & (columns.klass == klass)
    found: Floats = columns.events.gaps(chosen) if name == "itl" else getattr(columns, name)[chosen]
    found.sort()  # in place, as there may be many gaps; what is not finite comes first and last
    values = found[np.searchsorted(found, -np.inf, side="right") : np.searchsorted(found, np.inf)]
    if not values.size:
        return
    kept = range(values.size)[thinned(values.size, MOST_POINTS // 4)]
    share = (np.array(kept) + 1) / values.size
    x, y = np.append(values[kept], values[-1]), np.append(share, 1)
    panel.step(x, y, where="post", color=curve.colour, label=curve.label)


def _bound(panel: Axes, which: str, name: str, curve: Curve) -> None:
    """A dashed line at the objective of the curve's class, or the default one; gaps have TPOT's."""
    objectives = curve.view.run.objectives
    objective = objectives.get(curve.klass or "default") or objectives.get("default")
    value = getattr(objective, "tpot" if name == "itl" else name) if objective else None
    if value:
        time_bound(panel, which, value, curve.colour if curve.klass else "black")


def _scatter_ttft(panel: Axes, view: View) -> None:
    """A dot for each request at its intended time, red if it missed its objective."""
    columns = view.columns
    seen = np.flatnonzero(np.isfinite(columns.ttft))
    seen = seen[thinned(seen.size, MOST_POINTS)]
    missed = columns.judged[seen] & ~(columns.needed[seen] <= 1)
    for chosen, colour, label in ((seen[~missed], COLOURS[5], "request"), (seen[missed], RED, "missed")):
        if chosen.size:
            dots(panel, columns.intended[chosen], columns.ttft[chosen], colour, label)


def _percentile_lines(panel: Axes, series: Series, rows: dict[int, Floats]) -> None:
    middle = series.start + series.width / 2
    for percent, colour in ((50, COLOURS[0]), (95, COLOURS[4]), (99, COLOURS[3])):
        if np.isfinite(rows[percent]).any():
            panel.plot(middle, rows[percent], ".-", markersize=4, linewidth=1.2, color=colour, label=f"p{percent}")
