"""The answer as a self-contained page with plots, and as files."""

import json
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, PercentFormatter

from loadtest.report.events import Floats
from loadtest.report.output import write_whole
from loadtest.report.pages import page
from loadtest.report.pages.drawing import COLOURS, RED, Drawing, legend_above, new_drawing, nothing, thousands
from loadtest.report.rows import Section, figure, percent
from loadtest.sizing.answer import price
from loadtest.sizing.fleet import Fleet
from loadtest.sizing.load import Condition
from loadtest.sizing.trial import AS_IT_IS, FleetOutcome, SizingTrial
from loadtest.sizing.words import AnswerView, as_json, sections, sentences, unfitted

_WINDOWS = 60  # of a run, over which gauges are averaged


def write_page(view: AnswerView, folder: Path, plan: str, name: str) -> list[Path]:
    """Write JSON and page into `folder`. Returns the files."""
    write_whole(folder / plan, json.dumps(as_json(view), indent=2))
    write_whole(folder / name, render(view))
    return [folder / plan, folder / name]


def render(view: AnswerView) -> str:
    """The page as HTML."""
    title = f"{view.bench.model.name}: {view.answer.best.trial.fleet}"
    return page.page(f"{title} · plan", _parts(view, title))


def _parts(view: AnswerView, title: str) -> Iterator[str]:
    best = view.answer.best
    yield f"<h1>{escape(title)}</h1>"
    hardware = {each.kind.hardware.name: each.kind.hardware for each in view.answer.kinds}
    if view.answer.open:
        yield page.warning("Interrupted", [f"{view.answer.open}."])
    if caution := unfitted(view):
        yield page.warning("Caution", [caution])
    yield page.tiles(_tiles(view, best))
    said = sentences(view)[bool(view.answer.open) :]  # the box above says it
    yield f"<section>{''.join(f'<p>{escape(each)}</p>' for each in said if ': headrace ' not in each)}</section>"
    yield page.text("Commands", "\n\n".join(each for each in said if ": headrace " in each))
    tables = sections(view)
    yield page.table(tables[0])
    yield page.picture(
        "Sets, users, prices and loads",
        "What a user sees against what a device yields, a dot for each simulation that ran to its end; what came of each set "
        "at its price; and the answer beside others of its price at higher loads. A cross was given up: the goal was out of reach.",
        [_pareto(view), _prices(view), _loads(view)],
    )
    yield page.picture(
        f"The answer under {'the whole load' if best.trial.whole else 'its busiest part'}",
        "Means of all engines.",
        [
            _over_time(best, "busy", "time that engines compute", _busy, share=True),
            _over_time(best, "batch", "sequences of an engine", lambda each: _values(each, "running")),
            _over_time(best, "kv", "KV in use", lambda each: _values(each, "kv"), share=True),
            _over_time(best, "waiting", "requests that wait at an engine", lambda each: _values(each, "waiting")),
        ],
    )
    yield from (page.table(section) for section in tables[1:])
    rows = [
        (
            each.name,
            each.source or "not said",
            "fitted to measured runs" if each.fitted else "not fitted",
            f"{each.price_per_hour:g}" if each.price_per_hour else "",
            each.price_source,
        )
        for each in hardware.values()
    ]
    yield page.table(Section("Devices", ("device", "data sheet", "constants", "dollars an hour", "by"), rows))


def _tiles(view: AnswerView, best: FleetOutcome) -> list[tuple[str, str]]:
    fleet, room = best.trial.fleet, view.answer.headroom
    priced = bool(fleet.kind.hardware.price_per_hour)
    cost = price(fleet)
    found = [("devices", str(fleet.devices))]
    found += [("dollars an hour", f"{cost:,.2f}")] if priced else []
    found += (
        [("dollars a million tokens of answers", f"{cost / (best.output_rate * 3600) * 1e6:.3f}")] if priced else []
    )
    found += [("attainment", percent(best.attainment))]
    found += [("of the load is kept", f"{room.held:.3g} x")] if room else []
    found += [("of peak operations", percent(best.peak_share)), ("KV in use, at most", percent(best.most("kv")))]
    return [*found, ("answer tokens/s of a device", figure(best.device_rate))]


def _pareto(view: AnswerView) -> Drawing:
    """Tokens per second of a user against those of a device: fleets on the line are beaten by none in both."""
    drawing = new_drawing("pareto", "answer tokens / s: a device's against a user's")
    panel, ended = drawing.panel, [each for each in view.outcomes if not each.stopped and each.user_rate]
    if not ended:
        nothing(panel)
        return drawing
    points = sorted(((each.user_rate or 0.0, each.device_rate) for each in ended), reverse=True)
    front: list[tuple[float, float]] = []
    for user, device in points:
        if not front or device > front[-1][1]:
            front.append((user, device))
    panel.step(*zip(*front, strict=True), where="pre", color=COLOURS[6], linewidth=1)
    for good, colour, label in ((True, COLOURS[2], "keeps the goal"), (False, RED, "does not")):
        chosen = [each for each in ended if (each.attainment >= view.bench.goal) is good]
        if chosen:
            xy = [(each.user_rate or 0.0, each.device_rate) for each in chosen]
            panel.plot(*zip(*xy, strict=True), "o", color=colour, markersize=6, alpha=0.8, label=label)
    best = view.answer.best
    panel.plot(
        [best.user_rate or 0.0],
        [best.device_rate],
        "o",
        color="none",
        markeredgecolor="black",
        markersize=12,
        label="the answer",
    )
    panel.set(xlabel="of a user, at the median", xlim=(0, None), ylim=(0, None))
    thousands(panel)
    legend_above(panel)
    return drawing


def _prices(view: AnswerView) -> Drawing:
    """Attainment of each set under the trace's load, against its price."""
    unit = "dollars an hour" if view.answer.best.trial.fleet.kind.hardware.price_per_hour else "devices"
    drawing = new_drawing("prices", "attainment under the load as it is")
    panel = drawing.panel
    as_is = [each for each in view.outcomes if each.trial.condition == AS_IT_IS]
    for stopped, mark, label in ((False, "o", "to its end"), (True, "x", "given up")):
        chosen = [each for each in as_is if each.stopped is stopped]
        if chosen:
            panel.plot(
                [price(each.trial.fleet) for each in chosen],
                [_reached(each) for each in chosen],
                mark,
                color=COLOURS[0],
                markersize=7,
                alpha=0.8,
                label=label,
            )
    panel.axhline(view.bench.goal, color="black", linestyle="--", linewidth=0.9, label="goal")
    panel.set(xlabel=unit, xlim=(0, None), ylim=(0, 1.03))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    legend_above(panel)
    return drawing


def _reached(outcome: FleetOutcome) -> float:
    """Attainment; of a trial that was given up that of the requests that had arrived by then."""
    return (
        max(0.0, 1 - (outcome.judged - outcome.met) / max(1, outcome.arrived))
        if outcome.stopped
        else outcome.attainment
    )


def _loads(view: AnswerView) -> Drawing:
    """Attainment against the load: of the answer, and of the best of its rivals at the same price."""
    drawing = new_drawing("loads", "attainment over the busiest part")
    panel = drawing.panel
    fleets = [view.answer.best.trial.fleet]
    fleets += [fleet for fleet, _ in sorted(view.answer.equal, key=lambda each: -each[1]) if fleet not in fleets][:3]
    for place, fleet in enumerate(fleets):
        own = [
            each
            for each in view.outcomes
            if each.trial == SizingTrial(fleet, Condition(load=each.trial.condition.load))
        ]
        own.sort(key=lambda each: each.trial.condition.load)
        loads, values = [each.trial.condition.load for each in own], [_reached(each) for each in own]
        colour = COLOURS[place]
        panel.plot(
            loads,
            values,
            "-",
            color=colour,
            linewidth=1.2,
            label=_label(fleet, fleets[0]),
        )
        for each, load, value in zip(own, loads, values, strict=True):
            panel.plot([load], [value], "x" if each.stopped else "o", color=colour, markersize=6)
    panel.axhline(view.bench.goal, color="black", linestyle="--", linewidth=0.9)
    panel.set(xlabel="times the trace's load", ylim=(0, 1.03))
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    legend_above(panel)
    return drawing


def _label(fleet: Fleet, best: Fleet) -> str:
    """What tells a fleet from the answer."""
    if fleet == best:
        return "the answer"
    return f"{fleet.tuning.max_step_tokens} a step" if fleet.kind == best.kind else str(fleet)


def _over_time(
    outcome: FleetOutcome, name: str, title: str, read: Callable[[FleetOutcome], Floats], *, share: bool = False
) -> Drawing:
    drawing = new_drawing(name, title)
    panel = drawing.panel
    times, values = _windows(np.array([each.at for each in outcome.gauges]), read(outcome))
    if not values.size:
        nothing(panel)
        return drawing
    panel.plot(times, values, color=COLOURS[0], linewidth=1.2)
    panel.set(xlabel="seconds from the start", ylim=(0, 1.03 if share else None))
    if share:
        panel.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        thousands(panel)
    return drawing


def _values(outcome: FleetOutcome, gauge: str) -> Floats:
    return np.array([getattr(each, gauge) for each in outcome.gauges], dtype=np.float64)


def _busy(outcome: FleetOutcome) -> Floats:
    """Share of the time since the gauge before."""
    times, busy = _values(outcome, "at"), _values(outcome, "busy")
    spans = np.diff(times, prepend=0.0)
    return np.diff(busy, prepend=0.0) / np.where(spans > 0, spans, np.inf)


def _windows(times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Means of neighbours, so that a line can be read."""
    parts = np.array_split(np.arange(times.size), min(_WINDOWS, max(1, times.size)))
    kept = [part for part in parts if part.size]
    return np.array([times[part].mean() for part in kept]), np.array([values[part].mean() for part in kept])
