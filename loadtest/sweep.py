"""The highest rate at which a server meets its objectives, by replays at rates that a search chooses.

    headrace loadtest sweep TRACE --target http://127.0.0.1:8000/v1 --slo ttft=500ms,tpot=50ms --output capacity
    headrace loadtest sweep TRACE --target a=http://127.0.0.1:8000/v1 --target b=http://127.0.0.1:8001/v1 --slo ttft=1s

Several targets are measured in turn (A B A B), each by its own search, with the same requests at the same rate. No two runs
on a server send the same text, so that no run finds its prompts cached by an earlier one.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from loadtest.report.records import LoadRun
from loadtest.report.run_file import write_run
from loadtest.search import End, RateSearch, SearchResult, in_turn
from loadtest.workload.numbers import positive, share, whole

if TYPE_CHECKING:
    from loadtest.client.target import Target
    from loadtest.replay import ReplayPlan
    from loadtest.report.capacity import Point


@dataclass(slots=True, kw_only=True)
class Sweep:
    """Measures servers at the rates their searches ask for.

    Attributes:
        searches: by the server's name.
        replay: takes the name of a server and a plan, runs it and returns the run; blocking.
        plan: what every run has in common, with the objectives.
        seconds: of arrivals per run.
        least: fewest requests per run; low rates take longer to send them.
        folder: where to keep every run, if at all.
        say: called with a line about each measurement.
    """

    searches: Mapping[str, RateSearch]
    replay: Callable[[str, "ReplayPlan"], LoadRun]
    plan: "ReplayPlan"
    seconds: float = 60.0
    least: int = 50
    folder: Path | None = None
    say: Callable[[str], None] = print
    points: list["Point"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> dict[str, SearchResult]:
        """Run all searches to their ends. Returns the outcome by server."""
        in_turn(self.searches, self._measure)
        found = {name: search.found for name, search in self.searches.items()}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def planned(self, rate: float, before: int) -> "ReplayPlan":
        """The plan of one run: the same for all servers, different for each rate and each repetition."""
        shape = self.plan.shape
        seconds = max(self.seconds, self.least / rate)
        seed = Random(f"{shape.seed} {rate!r} {before}").getrandbits(31)
        if shape.arrivals is None:  # the trace's own times, stretched
            many = max(self.least, round(rate * seconds))
            return replace(self.plan, shape=replace(shape, rate=rate, limit=many, seed=seed))
        return replace(self.plan, shape=replace(shape, rate=rate, duration=seconds, seed=seed))

    def _measure(self, name: str, rate: float, before: int) -> float | None:
        from loadtest.report.capacity import Point
        from loadtest.report.metrics import summarize

        title = f"{name} at {rate:.4g}/s ({before + 1})"
        run = self.replay(name, replace(self.planned(rate, before), label=title))
        if self.folder is not None:
            write_run(run, self.folder / f"{name}-{rate:.9g}-{before + 1}.json")
        if any("interrupted" in reason for reason in run.invalid):
            raise KeyboardInterrupt
        if run.invalid:
            self._note(f"{title}: not counted: {'; '.join(run.invalid)}")
            return None
        summary = summarize(run)
        if summary.attainment is None:
            raise ValueError("no objective judges any request of this trace: give --slo")
        self.points.append(Point(name, rate, summary.attainment, summary.goodput[-1].rate))
        self.say(f"{title}: attainment {summary.attainment:.1%}")
        return summary.attainment

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def write(self, outcomes: Mapping[str, SearchResult], folder: Path) -> list[Path]:
        """Write `sweep.html` and `sweep.json` into `folder`."""
        from loadtest.report.capacity import as_json, render

        page, data = folder / "sweep.html", folder / "sweep.json"
        data.write_text(json.dumps(as_json(self.searches, outcomes, self.points)), encoding="utf-8")
        page.write_text(render(self.searches, outcomes, self.points, self.notes), encoding="utf-8")
        return [page, data]


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace loadtest sweep`. Returns the exit code: 1 if a server sustains no rate, 2 if nothing can be measured."""
    from loadtest.replay import replay

    try:
        options, replayed = _options(argv)
        targets = _targets(options.target, replayed)
        sweep = _sweep(options, replayed, list(targets), lambda name, plan: replay(plan, targets[name]))
        outcomes = sweep.run()
    except (OSError, ValueError, RuntimeError) as error:
        print(f"headrace loadtest sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("headrace loadtest sweep: interrupted", file=sys.stderr)
        return 130
    _show(sweep, outcomes)
    if sweep.folder is not None:
        for path in sweep.write(outcomes, sweep.folder):
            print(path)
    return 1 if any(found.end is End.NONE for found in outcomes.values()) else 0


def _show(sweep: Sweep, outcomes: Mapping[str, SearchResult]) -> None:
    from rich.console import Console

    from loadtest.report.capacity import trials, verdict
    from loadtest.report.table import section_table

    console = Console()
    for name, search in sweep.searches.items():
        console.print(section_table(trials(name, search)))
    for name, found in outcomes.items():
        console.print(verdict(name, found), markup=False, highlight=False)


def _options(argv: Sequence[str] | None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The sweep's own options, and those that all runs share, which are parsed as `replay`'s.

    Raises:
        ValueError: an option of `replay` that the sweep decides itself, or no objectives.
    """
    from loadtest.options import replay_parser

    options, rest = _parser().parse_known_args(argv)
    replayed = replay_parser("sweep").parse_args([*rest, "--target", options.target[0], "--arrivals", options.arrivals])
    decided = [name for name in ("rate", "duration", "limit") if getattr(replayed, name) is not None]
    decided += ["speed"] if replayed.speed != 1 else []
    if decided:
        raise ValueError(f"a sweep decides --{decided[0]} itself; see --seconds, --least, --start and --highest")
    if not replayed.slo:
        raise ValueError("the highest rate depends on the objectives: give --slo ttft=500ms,tpot=50ms")
    return options, replayed


def _targets(texts: Sequence[str], replayed: argparse.Namespace) -> dict[str, "Target"]:
    """Targets by name: from `name=URL`, or named by a letter. Raises ValueError if two have the same name."""
    from loadtest.options import target_of

    found: dict[str, Target] = {}
    for place, text in enumerate(texts):
        name, equals, url = text.partition("=")
        if not equals or "/" in name:
            name, url = chr(ord("A") + place), text
        if name in found:
            raise ValueError(f"two targets are called {name!r}")
        found[name] = replace(target_of(replayed), base_url=url)
    return found


def _sweep(
    options: argparse.Namespace,
    replayed: argparse.Namespace,
    names: list[str],
    replay: Callable[[str, "ReplayPlan"], LoadRun],
) -> Sweep:
    from loadtest.options import plan_of

    searches = {name: _search(options) for name in names}
    plan = plan_of(replayed)
    if replayed.output is not None:
        replayed.output.mkdir(parents=True, exist_ok=True)
    return Sweep(
        searches=searches,
        replay=replay,
        plan=plan,
        seconds=options.seconds,
        least=options.least,
        folder=replayed.output,
    )


def _search(options: argparse.Namespace) -> RateSearch:
    return RateSearch(
        start=options.start,
        lowest=options.lowest,
        highest=options.highest,
        goal=options.goal,
        precision=options.precision,
        repeats=options.repeats,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest sweep",
        usage="headrace loadtest sweep TRACE --target [NAME=]URL [--target ...] --slo OBJECTIVES [options]",
        description="Find the highest rate that meets the objectives.",
        epilog="Takes all options of `headrace loadtest replay` except --rate, --duration, --limit and --speed.",
        allow_abbrev=False,
    )
    parser.add_argument("--target", action="append", required=True, metavar="[NAME=]URL", help="several are compared")
    parser.add_argument("--goal", type=share, default=0.9, help="share of requests that must meet --slo [%(default)g]")
    parser.add_argument("--start", type=positive, default=1.0, metavar="R", help="first rate, requests/s [%(default)g]")
    parser.add_argument("--lowest", type=positive, default=0.01, metavar="R", help="no rate below [%(default)g]")
    parser.add_argument("--highest", type=positive, default=10_000.0, metavar="R", help="no rate above [%(default)g]")
    parser.add_argument("--precision", type=positive, default=0.05, help="relative, of the rate found [%(default)g]")
    parser.add_argument(
        "--repeats", type=whole, default=3, metavar="N", help="runs at a rate; the majority decides [%(default)s]"
    )
    parser.add_argument("--seconds", type=positive, default=60.0, metavar="S", help="of arrivals per run [%(default)g]")
    parser.add_argument("--least", type=whole, default=50, metavar="N", help="fewest requests per run [%(default)s]")
    parser.add_argument("--arrivals", default="poisson", metavar="KIND", help="as for replay [%(default)s]")
    return parser
