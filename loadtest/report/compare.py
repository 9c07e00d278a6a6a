"""Two or more runs side by side: which differences are more than noise.

    headrace loadtest compare A.json B.json
    headrace loadtest compare A1.json,A2.json B1.json,B2.json --html compared.html

Each side is a run, or several of the same kind joined by commas; every side is compared with the first. Intervals are
bootstrapped (`loadtest.report.bootstrap`). Sides that sent the same requests are resampled together, so that what a request
costs in both runs does not count as noise.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import numpy as np

from loadtest.report import trust
from loadtest.report.bootstrap import ComparedRun
from loadtest.report.events import Floats
from loadtest.report.output import ready_file
from loadtest.report.records import LoadRun
from loadtest.report.rows import Section, figure, percent
from loadtest.report.run_file import read_run


class Verdict(StrEnum):
    """What to make of a difference."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "noise"  # the interval holds 0
    FEW = "too few"  # values beyond the percentile to say anything
    SAME = "same"  # no difference at all in any resample


@dataclass(frozen=True, slots=True)
class Side:
    """Runs of one kind, in the order in which they ran; `letter` identifies them in tables."""

    letter: str
    name: str
    runs: tuple[ComparedRun, ...]

    @classmethod
    def of(cls, runs: Sequence[LoadRun], letter: str = "A") -> "Side":
        """A side named after its first run. Raises ValueError if a run has no requests."""
        if not all(run.measured.records for run in runs):
            raise ValueError(f"{runs[0].label}: a run without requests (that count) cannot be compared")
        return cls(letter, runs[0].label, tuple(ComparedRun(run) for run in runs))

    @property
    def label(self) -> str:
        """Letter and name."""
        return f"{self.letter}: {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One figure of two sides: their values, and the interval (`low` to `high`) of the second minus the first."""

    name: str
    share: bool
    first: float
    second: float
    low: float
    high: float
    verdict: Verdict

    @property
    def change(self) -> float:
        """Second minus first."""
        return self.second - self.first

    def texts(self) -> tuple[str, ...]:
        """Name, both values, change and interval relative to the first (shares: in percentage points), verdict."""
        show = percent if self.share else figure
        if self.share:
            change, low, high = (f"{value * 100:+.1f}" for value in (self.change, self.low, self.high))
            unit = " pp"
        elif self.first:
            change, low, high = (f"{value / self.first:+.1%}"[:-1] for value in (self.change, self.low, self.high))
            unit = " %"
        else:
            change, low, high = (f"{value:+.4g}" for value in (self.change, self.low, self.high))
            unit = ""
        return (
            self.name,
            show(self.first),
            show(self.second),
            change + unit,
            f"{low} … {high}{unit}",
            self.verdict.value,
        )


def compare(
    first: Side, second: Side, *, confidence: float = 0.99, resamples: int = 2000, seed: int = 0
) -> list[Difference]:
    """The differences of all figures that both sides have.

    If a side has several runs, runs are drawn first, one fewer than there are: drawing all of them would understate the
    variance from run to run by a factor (runs - 1) / runs.

    Args:
        confidence: of the intervals, from 0 to 1.
        resamples: how many.
        seed: of the bootstrap.
    """
    names = [
        place
        for place, pair in enumerate(zip(first.runs[0].figures, second.runs[0].figures, strict=True))
        if all(np.isfinite(_value(side, place)) for side in (first, second))
    ]
    drawn = _resampled((first, second), names, np.random.default_rng(seed), resamples)
    return [_difference(first, second, place, drawn[:, column], confidence) for column, place in enumerate(names)]


def _value(side: Side, place: int) -> float:
    """A side's figure: the mean over its runs."""
    return float(np.mean([run.figures[place].under(run.whole()) for run in side.runs]))


def same_requests(first: Side, second: Side) -> bool:
    """Whether the sides' runs sent the same requests, run by run."""

    def asked(side: Side) -> list[list[tuple[str, int, int]]]:
        return [
            [(record.klass, record.asked_prompt, record.asked_output) for record in each.run.measured.records]
            for each in side.runs
        ]

    return asked(first) == asked(second)


def _resampled(sides: tuple[Side, Side], places: list[int], rng: np.random.Generator, resamples: int) -> Floats:
    """Second minus first, for each figure under each resample: [resamples, figures]."""
    paired = same_requests(*sides)
    block = max(run.block for side in sides for run in side.runs)  # one for all, or pairs would not be drawn together
    rows = []
    for _ in range(resamples):
        seed = int(rng.integers(2**63))
        seeds = (seed, seed) if paired else (seed, seed + 1)
        first, second = (
            _draw(side, places, np.random.default_rng(each), block) for side, each in zip(sides, seeds, strict=True)
        )
        rows.append(second - first)
    return np.array(rows)


def _draw(side: Side, places: list[int], rng: np.random.Generator, block: int) -> Floats:
    """The side's figures under one resample: [figures]."""
    many = len(side.runs)
    chosen = [side.runs[place] for place in rng.integers(0, many, max(1, many - 1))]
    values = []
    for run in chosen:
        drawn = run.draw(rng, block)
        values.append([run.figures[place].under(drawn) for place in places])
    mean: Floats = np.array(values, dtype=np.float64).mean(axis=0)
    return mean


def _difference(first: Side, second: Side, place: int, drawn: Floats, confidence: float) -> Difference:
    of = first.runs[0].figures[place]
    enough = all(run.figures[place].enough for side in (first, second) for run in side.runs)
    tail = (1 - confidence) / 2 * 100
    low, high = (float(value) for value in np.nanpercentile(drawn, [tail, 100 - tail]))
    values = _value(first, place), _value(second, place)
    return Difference(
        name=of.name,
        share=of.share,
        first=values[0],
        second=values[1],
        low=low,
        high=high,
        verdict=_verdict(low, high, of.more_is_better, enough),
    )


def _verdict(low: float, high: float, more_is_better: bool, enough: bool) -> Verdict:
    if not enough:
        return Verdict.FEW
    if low == high == 0:
        return Verdict.SAME
    if low <= 0 <= high:
        return Verdict.NOISE
    return Verdict.BETTER if (low > 0) == more_is_better else Verdict.WORSE


def cautions(sides: Sequence[Side]) -> list[str]:
    """What makes the comparison weaker than it looks, a sentence for each."""
    found = []
    for side in sides:
        found += [f"{side.label} is invalid: {reason}" for each in side.runs for reason in each.run.invalid]
        found += [f"{side.label}: {caution}" for each in side.runs for caution in trust.cautions(each.run)]
    first = sides[0]
    for side in sides[1:]:
        if not same_requests(first, side):
            found.append(f"{side.label} did not send the same requests as {first.label}")
        if side.runs[0].run.objectives != first.runs[0].run.objectives:
            found.append(f"{side.label} has other objectives than {first.label}: do not compare attainment and goodput")
    if any(len(side.runs) == 1 for side in sides):
        found.append(
            "one run per side: the intervals cover what varies within a run, not from run to run; before you believe a small "
            "difference, run the sides in turn (A B A B) and join each side's runs by commas"
        )
    return found


def section(first: Side, second: Side, differences: list[Difference], confidence: float) -> Section:
    """The comparison of two sides as a table."""
    header = ("", first.letter, second.letter, "change", f"{confidence * 100:g} % interval", "verdict")
    return Section(f"{second.label} against {first.label}", header, [each.texts() for each in differences])


def render_html(sides: Sequence[Side], tables: list[Section], notes: list[str]) -> str:
    """A self-contained page with the tables, and the runs' distributions in shared pictures."""
    from html import escape

    from loadtest.report.pages import page
    from loadtest.report.pages.plots import View, goodput, latency_cdfs

    views = [View.of(run) for side in sides for run in _labelled(side)]
    marks = {"better": "good", "worse": "worse"}
    parts = [f"<h1>{escape(' against '.join(side.label for side in sides))}</h1>"]
    parts += [page.warning("Caution", notes)] if notes else []
    parts += [page.table(each, marks) for each in tables]
    shown = [latency_cdfs(views)]
    if all(view.columns.judged.any() for view in views):
        shown.append(goodput(views))
    parts += [page.picture(each.title, each.caption, each.drawings) for each in shown]
    return page.page("Load tests compared", parts)


def _labelled(side: Side) -> list[LoadRun]:
    """The side's runs, labelled with the side's name, and a number if there are several."""
    names = (
        [f"{side.label} ({number})" for number in range(1, len(side.runs) + 1)] if len(side.runs) > 1 else [side.label]
    )
    return [replace(each.run, label=name) for each, name in zip(side.runs, names, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace loadtest compare`. Returns the exit code: 2 if a run cannot be read."""
    from rich.console import Console

    from loadtest.report.table import section_table

    parser = _parser()
    arguments = parser.parse_args(argv)
    if len(arguments.runs) < 2:
        parser.error("give at least two runs")
    try:
        if arguments.html:
            ready_file(arguments.html, "--html")
        sides = [_read(joined, chr(ord("A") + place)) for place, joined in enumerate(arguments.runs)]
    except (OSError, ValueError) as error:
        print(f"headrace loadtest compare: {error}", file=sys.stderr)
        return 2
    confidence = arguments.confidence
    tables = []
    for side in sides[1:]:
        found = compare(sides[0], side, confidence=confidence, resamples=arguments.resamples, seed=arguments.seed)
        tables.append(section(sides[0], side, found, confidence))
    notes = cautions(sides)
    console = Console()
    for table in tables:
        console.print(section_table(table))
    for note in notes:
        console.print(f"caution: {note}", style="yellow", markup=False)
    if arguments.html:
        arguments.html.write_text(render_html(sides, tables, notes), encoding="utf-8")
    return 0


def _read(joined: str, letter: str) -> Side:
    return Side.of([read_run(Path(name)) for name in joined.split(",")], letter)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace loadtest compare", description="Compare runs; say what is noise.")
    parser.add_argument("runs", nargs="+", metavar="RUN.json[,RUN.json…]", help="a side: a run, or repeated runs")
    parser.add_argument("--confidence", type=_between, default=0.99, help="of the intervals (default 0.99)")
    parser.add_argument("--resamples", type=_many, default=2000, help="of the bootstrap (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures")
    return parser


def _many(text: str) -> int:
    value = int(text)
    if value < 100:
        raise argparse.ArgumentTypeError(f"at least 100 resamples, not {text}")
    return value


def _between(text: str) -> float:
    value = float(text)
    if not 0.5 <= value < 1:
        raise argparse.ArgumentTypeError(f"a confidence is from 0.5 to below 1, not {text}")
    return value
