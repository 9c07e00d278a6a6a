"""`headrace loadtest grid`: which flags a server should have, by trying them.

    headrace loadtest grid TRACE --slo ttft=500ms,tpot=50ms --output grid -- headrace serve --max-step-tokens '{128,256}'

For each combination of the alternatives the server is started, replayed against once it answers, and ended; all get the same
requests at the same times, with texts of each run's own. With `--rounds` all combinations take turns as often as that, so that what
varies from run to run is part of the intervals.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from loadtest.grid.combinations import Combination, combinations
from loadtest.grid.report import PAGE, measured, render
from loadtest.grid.server import ServerFailed, running
from loadtest.report.output import ready_folder, write_whole
from loadtest.report.records import LoadRun
from loadtest.report.run_file import write_run
from loadtest.report.trust import failed_share
from loadtest.stops import interruptible
from loadtest.workload.numbers import positive, whole

if TYPE_CHECKING:
    from loadtest.replay import ReplayPlan

Start = Callable[[Combination, Path], AbstractContextManager[int]]


@dataclass(slots=True, kw_only=True)
class Grid:
    """Measures the combinations.

    Attributes:
        combinations: of flags.
        start: starts a server, which writes to a log, and ends it.
        replay: runs a plan against the server that answers.
        plan: of every run.
        folder: of runs, logs and the page.
        runs: of each combination, by its name.
        failed: what went wrong, by the combination's name.
    """

    combinations: Sequence[Combination]
    start: Start
    replay: Callable[["ReplayPlan"], LoadRun]
    plan: "ReplayPlan"
    folder: Path
    runs: dict[str, list[LoadRun]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, rounds: int) -> bool:
        """Run all, or until Ctrl-C or SIGTERM. A combination that fails once is left out from then on. Returns whether it was
        interrupted."""
        try:
            with interruptible():
                for round_ in range(1, rounds + 1):
                    for place, each in enumerate(self.combinations, 1):
                        if each.name not in self.failed:
                            self._measure(each, f"{place}-{round_}")
        except KeyboardInterrupt:
            return True
        return False

    def _measure(self, each: Combination, stem: str) -> None:
        from loadtest.client.target import TargetError

        print(f"{each.name}: {' '.join(each.command)}", file=sys.stderr)
        try:
            with self.start(each, self.folder / f"{stem}.log") as pid:
                run = self.replay(replace(self.plan, label=each.name, server_pid=pid))
        except (ServerFailed, TargetError, OSError) as error:
            self.failed[each.name] = str(error)
            print(f"{each.name}: {error}", file=sys.stderr)
            return
        write_run(run, self.folder / f"{stem}.json")
        self.runs.setdefault(each.name, []).append(run)
        for reason in run.invalid:
            print(f"{each.name}: {reason}", file=sys.stderr)
        if run.interrupted:
            raise KeyboardInterrupt

    def sides(self) -> Iterator[list[LoadRun]]:
        """The runs that can be compared, by combination."""
        for runs in self.runs.values():
            if kept := [run for run in runs if not run.interrupted and run.measured.records]:
                yield kept


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write. Returns the exit code: 1 if a server or too many of its requests failed, 2 if nothing can be
    measured, 3 if a run must not be trusted, 130 if it was interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        grid, options = _grid(arguments)
        interrupted = grid.run(options.rounds)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"headrace loadtest grid: {error}", file=sys.stderr)
        return 2
    _tell(grid)
    runs = [run for found in grid.runs.values() for run in found]
    if interrupted:
        return 130
    if grid.failed or any(failed_share(run) > options.max_failed for run in runs):
        return 1
    return 3 if any(run.invalid for run in runs) else 0


def _tell(grid: Grid) -> None:
    from rich.console import Console

    from loadtest.report.table import section_table

    sides = list(grid.sides())
    if sides:
        Console().print(section_table(measured(sides)))
        write_whole(grid.folder / PAGE, render(sides, grid.failed))
        print(grid.folder / PAGE)
    for name, reason in grid.failed.items():
        print(f"{name}: failed: {reason}", file=sys.stderr)


def _grid(arguments: list[str]) -> tuple[Grid, argparse.Namespace]:
    """What is to be measured, and the options. Raises ValueError, TraceError, OSError."""
    from loadtest.options import plan_of, replay_parser, target_of
    from loadtest.replay import replay

    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, rest = _parser().parse_known_args(arguments[:place])
    replayed = replay_parser("grid").parse_args([*rest, "--target", own.target])
    if replayed.output is None:
        raise ValueError("--output DIR is where runs, the servers' logs and the page go")
    if place == len(arguments):
        raise ValueError("give the server's command after --: -- headrace serve --max-step-tokens '{128,256}'")
    found = combinations(arguments[place + 1 :])
    names = [PAGE, *(f"{number}-1.json" for number in range(1, len(found) + 1))]
    ready_folder(replayed.output, tuple(names), overwrite=replayed.overwrite)
    target = target_of(replayed)

    def start(each: Combination, log: Path) -> AbstractContextManager[int]:
        return running(each.command, target.api, log, start_seconds=own.start_seconds, stop_seconds=own.stop_seconds)

    grid = Grid(
        combinations=found,
        start=start,
        replay=partial(replay, target=target),
        plan=plan_of(replayed),
        folder=replayed.output,
    )
    return grid, argparse.Namespace(rounds=own.rounds, max_failed=replayed.max_failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest grid",
        usage="headrace loadtest grid TRACE --output DIR [options] -- COMMAND ... '{A,B}' ...",
        description="Start a server with each combination of flags, replay a trace against it, and compare.",
        epilog="All other options are those of `headrace loadtest replay`.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--target", default="http://127.0.0.1:8000/v1", metavar="URL", help="where each server answers [%(default)s]"
    )
    parser.add_argument("--rounds", type=whole, default=1, metavar="N", help="times that all take turns [%(default)s]")
    parser.add_argument(
        "--start-seconds", type=positive, default=600.0, metavar="S", help="that a start may take [%(default)g]"
    )
    parser.add_argument(
        "--stop-seconds",
        type=positive,
        default=60.0,
        metavar="S",
        help="that a server may take to end before it is killed [%(default)g]",
    )
    return parser
