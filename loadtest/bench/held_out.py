"""The simulator beside the real server: constants from one recorded run, then other loads, replayed and simulated.

    python -m loadtest.bench.held_out --traces FOLDER --output DIR

Starts `headrace serve` with the embedded model for each load, on a free port of this machine, and ends it. A run that `DIR` has
is not replayed again, so `--only moderate` measures one load when nothing else runs. The loads (`LOADS`) are of public traces, cut
to what two cores compute in a minute or two. Their rates are shares of what the server sustains: `--sustained` for the run that is
learned from, then what the simulator says with the constants that it taught. Nobody else may use the processors: near saturation a
queue depends on every percent of speed.
"""

import argparse
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loadtest.client.target import Target, TargetError
from loadtest.grid.server import ServerFailed, running
from loadtest.replay import ReplayPlan, replay
from loadtest.report.records import LoadRun
from loadtest.report.run_file import read_run, write_run
from loadtest.simulate.calibration.cli import Error, doubts, errors_of
from loadtest.simulate.calibration.fit import CalibrationRun, fit
from loadtest.simulate.calibration.served import settings_of
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_hardware, load_model, write_costs
from loadtest.workload.arrivals import Poisson, RateSteps
from loadtest.workload.numbers import positive
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.traces import Trace
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.read import read_trace
from scheduler.router.round_robin import RoundRobin

# What a CPU has without these flags; given, so that what is simulated is what is served.
SHAPE = ServerShape(max_step_tokens=128, max_running=64)
FLAGS = ("--max-step-tokens", str(SHAPE.max_step_tokens), "--max-running", str(SHAPE.max_running))
_MANY = 100  # requests that come at once, to see what is sustained


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutLoad:
    """One load.

    Attributes:
        trace: a file's name.
        shares: rates as shares of what is sustained, one after the other, equally long.
        seconds: of arrivals, in all.
        cut: window and lengths.
    """

    trace: str
    shares: tuple[float, ...]
    seconds: float
    cut: LoadShape

    def planned(self, sustained: float) -> LoadShape:
        """How it arrives, if `sustained` requests a second are."""
        rates = tuple(share * sustained for share in self.shares)
        arrivals = Poisson(rates[0]) if len(rates) == 1 else RateSteps(rates, self.seconds / len(rates))
        return replace(self.cut, arrivals=arrivals, duration=self.seconds)


LEARNED = "learned"
LOADS = {
    LEARNED: HeldOutLoad(
        trace="azure_llm_2023_conv_18.15-18.45.csv",
        shares=(0.1, 0.4, 0.7, 1.0),
        seconds=120.0,
        cut=LoadShape(window=(0.0, 600.0), max_prompt=512, max_output=64, seed=1),
    ),
    "moderate": HeldOutLoad(
        trace="burstgpt_1_days0-4.csv",
        shares=(0.5,),
        seconds=120.0,
        cut=LoadShape(window=(32400.0, 64800.0), max_prompt=700, max_output=100, seed=2),
    ),
    "saturated": HeldOutLoad(
        trace="burstgpt_3_sessions_100rows.csv",
        shares=(0.85,),
        seconds=120.0,
        cut=LoadShape(max_prompt=1000, max_output=80, seed=3),
    ),
    "overloaded": HeldOutLoad(
        trace="azure_llm_2023_conv_18.15-18.45.csv",
        shares=(1.4,),
        seconds=60.0,
        cut=LoadShape(window=(900.0, 1800.0), max_prompt=400, max_output=80, seed=4),
    ),
}


class HeldOutRuns:
    """Plans, replays and keeps the loads.

    Args:
        traces: where the traces are.
        folder: where runs are kept.
        faster: arrivals take so much less time.
    """

    def __init__(self, traces: Path, folder: Path, faster: float = 1.0) -> None:
        self._traces, self._folder, self._faster = traces, folder, faster

    def plan(self, name: str, rate: float | CostModel) -> ReplayPlan:
        """The load at the rates that its shares mean. Raises TraceError, ArrivalError.

        Args:
            name: which one.
            rate: requests a second that are sustained, or what says it.
        """
        load = replace(LOADS[name], seconds=LOADS[name].seconds / self._faster)
        trace = read_trace(str(self._traces / load.trace))
        rate = sustained(trace, load.cut, rate) if isinstance(rate, CostModel) else rate
        return ReplayPlan(trace=trace, shape=load.planned(rate), label=name)

    def run(self, name: str, rate: float | CostModel) -> CalibrationRun:
        """The recorded run, replayed if there is none yet; see `plan`.

        Raises:
            ServerFailed: the server did not start.
            TargetError: it cannot be asked.
            TraceError, ArrivalError, OSError: see `plan`.
            ValueError: the run says too little of what the server did.
        """
        path = self._folder / f"{name}.json"
        run = read_run(path) if path.exists() else self._replayed(name, rate, path)
        if reasons := doubts(run):
            raise ValueError(f"{path}: {'; '.join(reasons)}")
        told = settings_of(run.scraped.get("after", {}))
        return CalibrationRun(run, replace(SHAPE, kv_blocks=told["kv_blocks"], block_size=told.get("block_size", 32)))

    def _replayed(self, name: str, rate: float | CostModel, path: Path) -> LoadRun:
        plan = replace(self.plan(name, rate), keep=partial(write_run, path=path))
        target = f"http://127.0.0.1:{free_port()}/v1"
        command = [str(Path(sys.executable).with_name("headrace")), "serve", "--port", target[:-3].rpartition(":")[2]]
        with running([*command, *FLAGS], target, path.with_suffix(".log"), start_seconds=120, stop_seconds=60):
            return replay(plan, Target(base_url=target))


def sustained(trace: Trace, cut: LoadShape, cost: CostModel) -> float:
    """Requests a second that a simulated server ends where many come at once."""
    crowd = make_plan(trace, replace(cut, arrivals=Poisson(1e6), limit=_MANY)).requests
    records = Cluster(cost, SHAPE, RoundRobin()).run(crowd)
    return len(records) / max(record.finished or 0.0 for record in records)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def rows(name: str, run: LoadRun, errors: Sequence[Error]) -> list[str]:
    """A table's rows for one load, those beyond their bounds marked."""
    count = sum(record.ok for record in run.records)
    found = [f"| {name}, {count} requests in {run.duration:.0f} s | measured | simulated | error |", "| --- " * 4 + "|"]
    for error in errors:
        mark = "" if error.within else " !"
        unit, factor = (
            ("ms", 1e3) if error.figure in ("tpot", "itl") else ("", 1) if error.level == "mean" else ("s", 1)
        )
        both = " | ".join(f"{factor * value:.3g} {unit}".rstrip() for value in (error.measured, error.predicted))
        found.append(f"| {error.figure} {error.level} | {both} | {error.relative:+.1%}{mark} |")
    return found


def compared(runs: HeldOutRuns, folder: Path, names: Sequence[str], rate: float, hardware: str) -> bool:
    """Learn, replay, simulate, print. Whether every figure of what was held out is within its bound."""
    guess = CostModel(load_hardware(hardware), load_model("smollm2-135m"))
    learned = runs.run(LEARNED, rate)
    costs = fit([learned], guess)
    write_costs(costs, folder / "costs.yaml", f"{guess.model.name}, fitted to {learned.run.label}")
    cost = CostModel(guess.hardware.with_costs(costs), guess.model)
    print(costs)
    within = True
    for name in (LEARNED, *names):
        measured = learned if name == LEARNED else runs.run(name, cost)
        errors = errors_of(measured, cost)
        print("", *rows(name, measured.run, errors), sep="\n", flush=True)
        within &= name == LEARNED or all(error.within for error in errors)
    return within


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if a figure is further off than `BOUNDS` of `calibrate`, 2 if nothing can be said."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.held_out", description="The simulator beside the real server."
    )
    parser.add_argument("--traces", type=Path, required=True, metavar="FOLDER", help="where the public traces are")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where runs are kept, and taken from")
    held_out = [name for name in LOADS if name != LEARNED]
    parser.add_argument("--only", nargs="*", choices=held_out, default=held_out, help="of the loads [all]")
    parser.add_argument("--hardware", default="cpu-2core", help="whose rates are taken [%(default)s]")
    parser.add_argument(
        "--sustained",
        type=positive,
        default=2.0,
        metavar="R",
        help="requests a second, to learn from about so many [%(default)g]",
    )
    parser.add_argument("--faster", type=positive, default=1.0, metavar="X", help="so much shorter runs [%(default)g]")
    options = parser.parse_args(argv)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        runs = HeldOutRuns(options.traces, options.output, options.faster)
        return 0 if compared(runs, options.output, options.only, options.sustained, options.hardware) else 1
    except (ServerFailed, TargetError, TraceError, OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
