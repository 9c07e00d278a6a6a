"""`headrace loadtest`: a table of subcommands, each imported when it is called."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

from loadtest.client.target import TargetError
from loadtest.options import plan_of, replay_parser, target_of
from loadtest.replay import replay
from loadtest.report import RUN, RunReport
from loadtest.report.output import ready_folder
from loadtest.report.run_file import write_run
from loadtest.report.trust import failed_share
from loadtest.workload.vocabulary import PromptTokenizerError

EXIT_FAILED = 1  # more requests than --max-failed
EXIT_USAGE = 2
EXIT_INVALID = 3  # the run happened but must not be trusted
# Name: where its `main(argv) -> int` is, and what it does.
COMMANDS = {
    "replay": ("loadtest.cli", "replay a trace against a server"),
    "sweep": ("loadtest.sweep", "find the highest rate that keeps the objectives"),
    "compare": ("loadtest.report.compare", "show runs side by side, and say what is noise"),
    "simulate": ("loadtest.simulate.cli", "run the real scheduler with a cost model"),
    "grid": ("loadtest.grid.cli", "compare a server's flags: start it with each combination, and replay"),
    "plan": ("loadtest.sizing.cli", "find the cheapest set of devices that keeps the objectives"),
    "layouts": ("loadtest.planner.cli", "find the best use of a number of GPUs"),
    "calibrate": ("loadtest.simulate.calibration.cli", "fit the cost model to measured runs"),
    "evictions": ("loadtest.evictions", "hit rates of the eviction policies over a trace"),
    "routing": ("loadtest.routing", "what routing policies find in caches, beside one cache as large as all"),
    "record": ("loadtest.workload.record", "make a trace from the server's access log"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns its exit code; 2 if the command line is wrong."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="headrace loadtest",
        usage="headrace loadtest COMMAND [arguments]",
        description="Replay traces against any OpenAI-compatible server, and simulate ours.",
        epilog="\n".join(["commands:", *(f"  {name:{width}}  {does}" for name, (_, does) in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="each has its own --help")
    name = parser.parse_args(arguments[:1]).command
    if name == "replay":
        return run_replay_command(arguments[1:])
    try:
        command: Callable[[Sequence[str]], int] = import_module(COMMANDS[name][0]).main
    except ModuleNotFoundError as error:
        print(f"headrace loadtest {name}: {error.name} is missing; pip install 'headrace[loadtest]'", file=sys.stderr)
        return EXIT_USAGE
    return command(arguments[1:])


def run_replay_command(argv: Sequence[str]) -> int:
    """`headrace loadtest replay`. Returns the exit code: 1 if too many failed, 2 if nothing can be run, 3 if the run is invalid."""
    options = replay_parser().parse_args(argv)
    folder: Path | None = options.output
    try:
        plan, target = plan_of(options), target_of(options)
        if folder is not None:
            ready_folder(folder, (RUN,), overwrite=options.overwrite)
            plan = replace(plan, keep=partial(write_run, path=folder / RUN))
        run = replay(plan, target)
    except (TargetError, PromptTokenizerError, ValueError, OSError) as error:
        print(f"headrace loadtest replay: {error}", file=sys.stderr)
        return EXIT_USAGE
    report = RunReport(run)
    report.print_table()
    if folder is not None:
        for path in (folder / RUN, *report.write_page(folder)):
            print(path)
    if run.invalid:
        return EXIT_INVALID
    return EXIT_FAILED if failed_share(run) > options.max_failed else 0


if __name__ == "__main__":
    sys.exit(main())
