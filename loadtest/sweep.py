"""The highest rate at which a server keeps its objectives, by replays at rates that a search chooses.

    headrace loadtest sweep TRACE --target http://127.0.0.1:8000/v1 --slo ttft=500ms,tpot=50ms --output capacity
    headrace loadtest sweep TRACE --target a=http://127.0.0.1:8000/v1 --target b=http://127.0.0.1:8001/v1 --slo ttft=1s

Several targets are measured in turn (A B A B), each by its own search, with the same requests at the same rate. No two runs
on one server send the same text, so that no run finds its prompts in the cache of an earlier one.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from loadtest.records import Run
from loadtest.search import End, Found, RateSearch, in_turn

if TYPE_CHECKING:
    from loadtest.replay import ReplayPlan
    from loadtest.report.capacity import Point
    from loadtest.target import Target


@dataclass(slots=True, kw_only=True)
class Sweep:
    """Measures servers at the rates their searches ask for.

    Attributes:
        searches: by the server's name.
        replay: the name of a server and a plan -> the run; blocking.
        plan: what every run has in common; its objectives judge.
        seconds: of arrivals a run; `least`: requests a run at the least, for which low rates take longer.
        folder: where every run is kept, if at all.
        say: takes a line on what was measured.
    """

    searches: Mapping[str, RateSearch]
    replay: Callable[[str, "ReplayPlan"], Run]
    plan: "ReplayPlan"
    seconds: float = 60.0
    least: int = 50
    folder: Path | None = None
    say: Callable[[str], None] = print
    points: list["Point"] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def run(self) -> dict[str, Found]:
        """Search to the end; the outcome of each server."""
        in_turn(self.searches, self._measure)
        found = {name: search.found for name, search in self.searches.items()}
        return {name: outcome for name, outcome in found.items() if outcome is not None}

    def planned(self, rate: float, before: int) -> "ReplayPlan":
        """The plan of one run: the same for all servers, another for each rate and each repetition."""
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
            run.write(self.folder / f"{name}-{rate:.4g}-{before + 1}.json")
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

    def write(self, outcomes: Mapping[str, Found], folder: Path) -> list[Path]:
        """Write `sweep.html` and `sweep.json` into `folder`."""
        from loadtest.report.capacity import as_json, render

        page, data = folder / "sweep.html", folder / "sweep.json"
        data.write_text(json.dumps(as_json(self.searches, outcomes, self.points)), encoding="utf-8")
        page.write_text(render(self.searches, outcomes, self.points, self.notes), encoding="utf-8")
        return [page, data]


def main(argv: Sequence[str] | None = None) -> int:
    """`headrace loadtest sweep`; 2 if nothing can be measured, 3 if a server sustains no rate at all."""
    from loadtest.replay import replay

    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        targets = _targets(arguments)
        sweep = _sweep(arguments, list(targets), lambda name, plan: replay(plan, targets[name]))
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
    return 3 if any(found.end is End.NONE for found in outcomes.values()) else 0


def _show(sweep: Sweep, outcomes: Mapping[str, Found]) -> None:
    from rich.console import Console

    from loadtest.report.capacity import trials, verdict
    from loadtest.report.table import section_table

    console = Console()
    for name, search in sweep.searches.items():
        console.print(section_table(trials(name, search)))
    for name, found in outcomes.items():
        console.print(verdict(name, found), markup=False, highlight=False)


def _targets(arguments: argparse.Namespace) -> dict[str, "Target"]:
    """By name: `name=URL`, or a letter."""
    from loadtest.target import Target

    found: dict[str, Target] = {}
    for place, text in enumerate(arguments.target):
        name, equals, url = text.partition("=")
        if not equals or "/" in name:
            name, url = chr(ord("A") + place), text
        if name in found:
            raise ValueError(f"two targets are called {name!r}")
        found[name] = Target(
            base_url=url,
            model=arguments.model,
            api_key=arguments.api_key,
            endpoint=arguments.endpoint,
            tokenizer=arguments.tokenizer,
        )
    return found


def _sweep(arguments: argparse.Namespace, names: list[str], replay: Callable[[str, "ReplayPlan"], Run]) -> Sweep:
    from loadtest.arrivals import parse_arrivals
    from loadtest.objectives import parse_objectives
    from loadtest.plan import Shape
    from loadtest.replay import ReplayPlan
    from loadtest.traces.read import read_trace

    shape = Shape(
        arrivals=parse_arrivals(arguments.arrivals),
        max_prompt=arguments.max_prompt,
        max_output=arguments.max_output,
        scale=arguments.scale,
        seed=arguments.seed,
    )
    trace = read_trace(arguments.trace, arguments.format, strict=arguments.strict)
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
    return Sweep(
        searches={name: _search(arguments) for name in names},
        replay=replay,
        plan=ReplayPlan(trace=trace, shape=shape, objectives=parse_objectives(arguments.slo)),
        seconds=arguments.seconds,
        least=arguments.least,
        folder=arguments.output,
    )


def _search(arguments: argparse.Namespace) -> RateSearch:
    return RateSearch(
        start=arguments.start,
        lowest=arguments.lowest,
        highest=arguments.highest,
        goal=arguments.goal,
        precision=arguments.precision,
        repeats=arguments.repeats,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headrace loadtest sweep", description="The highest rate that keeps --slo.")
    parser.add_argument("trace", type=Path, help="lengths, and with --arrivals trace times, come from here")
    parser.add_argument("--target", action="append", required=True, metavar="[NAME=]URL", help="several are compared")
    parser.add_argument(
        "--slo", required=True, help="objectives: ttft=500ms,tpot=50ms; by class: chat:ttft=1s;batch:e2e=60s"
    )
    parser.add_argument("--goal", type=float, default=0.9, help="share of requests that must meet it (default 0.9)")
    parser.add_argument("--start", type=float, default=1.0, help="first rate, requests/s (default 1)")
    parser.add_argument("--lowest", type=float, default=0.01, help="no rate below (default 0.01)")
    parser.add_argument("--highest", type=float, default=10_000.0, help="no rate above (default 10000)")
    parser.add_argument("--precision", type=float, default=0.05, help="of the rate found (default 0.05)")
    parser.add_argument("--repeats", type=int, default=3, help="runs at a rate, whose majority decides (default 3)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of arrivals a run (default 60)")
    parser.add_argument("--least", type=int, default=50, help="requests a run, at the least (default 50)")
    parser.add_argument(
        "--arrivals", default="poisson", help="poisson, gamma:cv=2, onoff:..., or trace (default poisson)"
    )
    parser.add_argument("--format", help="of the trace; by default its first line tells")
    parser.add_argument("--strict", action="store_true", help="stop at a broken row of the trace")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all lengths")
    parser.add_argument("--max-prompt", type=int, help="bound on prompts, tokens")
    parser.add_argument("--max-output", type=int, help="bound on answers, tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="by default the first that a target lists")
    parser.add_argument("--api-key")
    parser.add_argument("--endpoint", choices=("completions", "chat"), default="completions")
    parser.add_argument("--tokenizer", help="a tokenizer.json, where a target cannot be asked")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep every run, and a page, there")
    return parser
