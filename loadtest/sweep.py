"""The highest rate at which a server meets its objectives, by replays at rates that a search chooses.

    headrace loadtest sweep TRACE --target http://127.0.0.1:8000/v1 --slo ttft=500ms,tpot=50ms --output capacity
    headrace loadtest sweep TRACE --target a=http://127.0.0.1:8000/v1 --target b=http://127.0.0.1:8001/v1 --slo ttft=1s

Several targets are measured in turn (A B A B), each by its own search, with the same requests at the same rate. No two runs
on a server send the same text, so that no run finds its prompts cached by an earlier one.
"""

import argparse
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from loadtest.report.output import ready_folder, write_whole
from loadtest.report.records import LoadRun
from loadtest.report.run_file import write_run
from loadtest.report.trust import cautions
from loadtest.search import Attained, End, RateSearch, SearchResult, in_turn
from loadtest.stops import interruptible
from loadtest.workload.numbers import positive, share, whole

if TYPE_CHECKING:
    from loadtest.client.target import Target
    from loadtest.replay import ReplayPlan
    from loadtest.report.capacity import Point

DATA = "sweep.json"
_MOST_LONGER = 4  # times as many requests as usual, near the edge


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
        texts: seed of the texts: no two runs of a sweep, nor of two sweeps, send the same.
    """

    searches: Mapping[str, RateSearch]
    replay: Callable[[str, "ReplayPlan"], LoadRun]
    plan: "ReplayPlan"
    texts: int
    seconds: float = 60.0
    least: int = 50
    folder: Path | None = None
    say: Callable[[str], None] = print
    points: list["Point"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _plans: dict[tuple[float, int], "ReplayPlan"] = field(default_factory=dict)

    def run(self) -> dict[str, SearchResult]:
        """Run all searches to their ends, or until Ctrl-C or SIGTERM. Returns the outcome by server."""
        try:
            with interruptible():
                in_turn(self.searches, self._measure)
        except KeyboardInterrupt:
            self._note("interrupted: what was measured by then")
        return self.outcomes

    @property
    def outcomes(self) -> dict[str, SearchResult]:
        """What is known by now, by server."""
        return {name: search.so_far for name, search in self.searches.items()}

    def planned(self, rate: float, before: int) -> "ReplayPlan":
        """The plan of one run: the same for all servers, different for each rate and each repetition.

        Where the runs so far leave open whether a server sustains the rate, each further one has twice as many requests.
        """
        if (rate, before) not in self._plans:
            open_ = any(search.near(rate) for search in self.searches.values())
            self._plans[rate, before] = self._plan(rate, before, min(2**before, _MOST_LONGER) if open_ else 1)
        return self._plans[rate, before]

    def _plan(self, rate: float, before: int, longer: int) -> "ReplayPlan":
        shape = self.plan.shape
        seconds = longer * max(self.seconds, self.least / rate)
        seed, texts = (Random(f"{which} {rate!r} {before}").getrandbits(31) for which in (shape.seed, self.texts))
        if shape.arrivals is None:  # the trace's own times, stretched
            many = max(longer * self.least, round(rate * seconds))
            return replace(self.plan, texts=texts, shape=replace(shape, rate=rate, limit=many, seed=seed))
        return replace(self.plan, texts=texts, shape=replace(shape, rate=rate, duration=seconds, seed=seed))

    def _measure(self, name: str, rate: float, before: int) -> Attained | None:
        title = f"{name} at {rate:.4g}/s ({before + 1})"
        run = self.replay(name, replace(self.planned(rate, before), label=title))
        if self.folder is not None:
            write_run(run, self.folder / f"{name}-{rate:.9g}-{before + 1}.json")
        if run.interrupted:
            raise KeyboardInterrupt
        if run.invalid:
            self._note(f"{title}: not counted: {'; '.join(run.invalid)}")
            return None
        for caution in cautions(run):
            self._note(f"{title}: {caution}")
        return self._attained(run, title, name, rate)

    def _attained(self, run: LoadRun, title: str, name: str, rate: float) -> Attained:
        """What a run attained. Raises ValueError if no objective judges any of its requests."""
        from loadtest.report.capacity import Point, as_json

        met = [objective.met_by(each) for each in run.records if (objective := run.objective(each)) is not None]
        if not met:
            raise ValueError("no objective judges any request of this trace: give --slo")
        attained = Attained.of(met)
        self.points.append(Point(name, rate, attained.share, sum(met) / run.duration if run.duration else 0.0))
        self.say(f"{title}: attainment {attained.share:.1%}")
        if self.folder is not None:  # so that nothing is lost, whatever ends the sweep
            write_whole(self.folder / DATA, json.dumps(as_json(self.searches, self.outcomes, self.points)))
        return attained

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.say(text)

    def write(self, outcomes: Mapping[str, SearchResult], folder: Path) -> list[Path]:
        """Write `sweep.html` and `sweep.json` into `folder`."""
        from loadtest.report.capacity import as_json, render

        page, data = folder / "sweep.html", folder / DATA
        write_whole(data, json.dumps(as_json(self.searches, outcomes, self.points)))
        write_whole(page, render(self.searches, outcomes, self.points, self.notes))
        return [page, data]


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace loadtest sweep`.

    Returns the exit code: 1 if a server sustains no rate, 2 if nothing can be measured, 3 if of a server nothing can be said, and
    130 if it was interrupted.
    """
    from loadtest.replay import replay

    try:
        options, replayed = _options(argv)
        targets = _targets(options.target, replayed)
        sweep = _sweep(options, replayed, list(targets), lambda name, plan: replay(plan, targets[name]))
        outcomes = sweep.run()
    except (OSError, ValueError, RuntimeError) as error:
        print(f"headrace loadtest sweep: {error}", file=sys.stderr)
        return 2
    _show(sweep, outcomes)
    if sweep.folder is not None:
        for path in sweep.write(outcomes, sweep.folder):
            print(path)
    return _exit_code(list(outcomes.values()))


def _exit_code(outcomes: Sequence[SearchResult]) -> int:
    if any(found.end is End.INTERRUPTED for found in outcomes):
        return 130
    if any(found.end is End.NONE for found in outcomes):
        return 1
    return 3 if any(not found.end.told or found.sure[0] is None for found in outcomes) else 0


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
        ready_folder(replayed.output, (DATA,), overwrite=replayed.overwrite)
    return Sweep(
        searches=searches,
        replay=replay,
        plan=plan,
        seconds=options.seconds,
        least=options.least,
        folder=replayed.output,
        texts=secrets.randbits(31) if plan.texts is None else plan.texts,
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
