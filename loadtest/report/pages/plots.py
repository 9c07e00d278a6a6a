"""The pictures of a report: functions from runs to figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from loadtest.report.columns import Columns, Floats, concurrency
from loadtest.report.metrics import attainment_curve
from loadtest.report.pages.drawing import (
    COLOURS,
    GREY,
    RED,
    Panels,
    failures,
    legend_above,
    new_figure,
    nothing,
    png,
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
    """A picture: file name without extension, heading, what it shows, and the PNG."""

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, slots=True)
class View:
    """A run, with what is computed from it once for all pictures."""

    run: LoadRun
    columns: Columns
    series: Series

    @classmethod
    def of(cls, run: LoadRun) -> "View":
        """Compute the arrays and the series of `run`."""
        columns = Columns.of(run)
        return cls(run, columns, Series.of(run, columns))


CAPTIONS: dict[str, tuple[str, str]] = {
    "latency_cdf": (
        "Latency distributions",
        "Share of complete answers at most that slow. Dashed: the objective (TPOT's, for gaps), if it is near.",
    ),
    "over_time": (
        "Latency against arrivals",
        "The plan's arrivals; each request at its intended time; gaps between events at their ends.",
    ),
    "throughput": (
        "Throughput",
        "Tokens when they came, prompts when their first token came; requests when they ended.",
    ),
    "concurrency": (
        "Concurrency, and the client's lateness",
        "Requests between their intended time and end, and those without a token yet; how late the client sent each.",
    ),
    "goodput": (
        "Goodput and attainment",
        "Left: attainment with every bound multiplied. Right: requests per second that met their objective, "
        "against those that arrived; one dot per window of the run.",
    ),
}


def plots(view: View) -> list[Plot]:
    """All pictures of a run, in the order of the page; goodput only if an objective judges something."""
    figures = {
        "latency_cdf": latency_cdfs([view]),
        "over_time": over_time(view),
        "throughput": throughput(view),
        "concurrency": in_flight(view),
    }
    if view.columns.judged.any():
        figures["goodput"] = goodput([view])
    return [Plot(name, *CAPTIONS[name], png(figure)) for name, figure in figures.items()]


def latency_cdfs(views: Sequence[View]) -> Figure:
    """Four panels: TTFT, TPOT, ITL, end to end; a line for each class if there is one run, else for each run."""
    figure, axes = new_figure(2, 2, 6.2)
    curves = _curves(views)
    for panel, name in zip(axes.flat, TITLES, strict=True):
        for curve in curves:
            _cdf(panel, name, curve)
        panel.set(title=f"{TITLES[name]} ({name.upper() if name != 'e2e' else name})", ylim=(0, 1.01))
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        if not panel.has_data():
            nothing(panel)
            continue
        time_axis(panel, "x")
        if len(curves) > 1:
            panel.legend(loc="lower right", fontsize=9)
        for curve in curves:
            _bound(panel, "x", name, curve)
    return figure


def over_time(view: View) -> Figure:
    """Three panels over the same time axis: arrivals, TTFT, ITL."""
    figure, axes = new_figure(3, 1, 7.6, sharex=True, heights=(1, 2, 2))
    arrivals, ttft, itl = axes[:, 0]
    series = view.series
    arrivals.bar(series.start, series.arrivals, series.width, align="edge", color=GREY)
    arrivals.set_ylabel("arrivals / s")
    _scatter_ttft(ttft, view)
    for panel, name, rows in ((ttft, "ttft", series.ttft), (itl, "itl", series.itl)):
        _percentile_lines(panel, series, rows)
        panel.set_ylabel(name.upper())
        if panel.has_data():
            time_axis(panel, "y")
            _bound(panel, "y", name, Curve("", view, None, "black"))
        else:
            nothing(panel)
    failures(ttft, view.columns.intended[view.columns.failed])
    for panel in (ttft, itl):
        legend_above(panel)
    itl.set_xlabel("seconds from the start")
    _whole_width(view, axes)
    return figure


def throughput(view: View) -> Figure:
    """Three panels over the same time axis: output tokens, prompt tokens, requests."""
    figure, axes = new_figure(3, 1, 6.6, sharex=True)
    output, prompt, requests = axes[:, 0]
    series = view.series
    middle = series.start + series.width / 2
    output.plot(middle, series.output_rate, color=COLOURS[0])
    output.set_ylabel("output tokens / s")
    prompt.plot(middle, series.prompt_rate, color=COLOURS[4])
    prompt.set_ylabel("prompt tokens / s")
    if not series.prompt_rate.any():
        nothing(prompt)
    requests.step(series.start, series.arrivals, where="post", color=GREY, label="arrived")
    requests.plot(middle, series.completions, color=COLOURS[2], label="answered")
    if series.failures.any():
        requests.bar(series.start, series.failures, series.width, align="edge", color=RED, label="failed")
    requests.set_ylabel("requests / s")
    for panel in (output, prompt, requests):
        panel.set_ylim(0, None)
        thousands(panel)
    legend_above(requests)
    requests.set_xlabel("seconds from the start")
    _whole_width(view, axes)
    return figure


def in_flight(view: View) -> Figure:
    """Two panels over the same time axis: requests in flight and waiting, and the client's lateness."""
    figure, axes = new_figure(2, 1, 4.8, sharex=True, heights=(2, 1))
    count, late = axes[:, 0]
    columns = view.columns
    first = np.where(np.isfinite(columns.first), columns.first, columns.ended)
    for end, colour, label in ((columns.ended, COLOURS[0], "in flight"), (first, COLOURS[1], "without a token")):
        times, counts = concurrency(columns.intended, np.maximum(end, columns.intended))
        kept = thinned(times.size, MOST_POINTS)
        count.fill_between(times[kept], counts[kept], step="post", color=colour, alpha=0.3, linewidth=0, label=label)
        count.step(times[kept], counts[kept], where="post", color=colour, linewidth=0.9)
    count.set(ylabel="requests", ylim=(0, None))
    legend_above(count)
    kept = thinned(columns.intended.size, MOST_POINTS)
    milliseconds = np.maximum(columns.lateness[kept], 0) * 1000
    late.scatter(columns.intended[kept], milliseconds, s=6, color=COLOURS[6], alpha=0.5, linewidths=0)
    late.set(ylabel="lateness (ms)", ylim=(0, None), xlabel="seconds from the start")
    _whole_width(view, axes)
    return figure


def goodput(views: Sequence[View]) -> Figure:
    """Two panels: attainment against the scale of the objectives, and goodput against the rate of arrivals."""
    figure, axes = new_figure(1, 2, 3.9)
    curve, rate = axes[0]
    most = 0.0
    for place, view in enumerate(views):
        colour, series = COLOURS[place % len(COLOURS)], view.series
        curve.plot(SCALES, attainment_curve(view.columns, SCALES), color=colour, label=view.run.label)
        filled = series.judged > 0
        rate.scatter(series.judged[filled], series.good[filled], s=18, color=colour, alpha=0.55, linewidths=0)
        most = max(most, float(series.judged.max(initial=0)))
    curve.set(
        xscale="log", xlim=(SCALES[0], SCALES[-1]), ylim=(0, 1.01), xlabel="bounds multiplied by", ylabel="attainment"
    )
    curve.axvline(1, color="black", linestyle="--", linewidth=0.9)
    curve.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    curve.yaxis.set_major_formatter(PercentFormatter(1))
    if len(views) > 1:
        legend_above(curve)
    rate.plot([0, most], [0, most], color="black", linestyle="--", linewidth=0.9, label="all meet it")
    rate.set(xlabel="arrivals / s", ylabel="met their objective / s", xlim=(0, None), ylim=(0, None))
    legend_above(rate)
    return figure


def _whole_width(view: View, axes: Panels) -> None:
    """Let the shared axis of time go from the run's start to its end."""
    axes[0, 0].set_xlim(0, float(view.series.start[-1]) + view.series.width)


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
    columns, klass = curve.view.columns, curve.klass
    chosen = columns.whole if klass is None else columns.whole & (columns.klass == klass)
    found: Floats = columns.gap[chosen[columns.gap_owner]] if name == "itl" else getattr(columns, name)[chosen]
    values = np.sort(found[np.isfinite(found)])
    if not values.size:
        return
    kept = thinned(values.size, MOST_POINTS // 4)
    share = np.arange(1, values.size + 1) / values.size
    x, y = np.append(values[kept], values[-1]), np.append(share[kept], 1)
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
    for chosen, colour, label in ((seen[~missed], COLOURS[5], "request"), (seen[missed], RED, "objective missed")):
        if chosen.size:
            panel.scatter(
                columns.intended[chosen], columns.ttft[chosen], s=7, color=colour, alpha=0.5, linewidths=0, label=label
            )


def _percentile_lines(panel: Axes, series: Series, rows: dict[int, Floats]) -> None:
    middle = series.start + series.width / 2
    for percent, colour in ((50, COLOURS[0]), (95, COLOURS[4]), (99, COLOURS[3])):
        if np.isfinite(rows[percent]).any():
            panel.plot(middle, rows[percent], ".-", markersize=3, linewidth=1.1, color=colour, label=f"p{percent}")
