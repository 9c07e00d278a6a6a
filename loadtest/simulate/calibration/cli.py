"""`headrace loadtest calibrate`: a device's constants from measured runs, and how far predictions are from those runs.

The runs may be of any server. How it was set up comes from the options; what these leave open from its metrics, in the run or in
a file; and the rest is assumed to be as a headrace server has it, and said.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean

import numpy as np

from loadtest.client.scrape import parse_metrics
from loadtest.report.output import ready_file
from loadtest.report.records import ErrorClass, LoadRun, RequestRecord
from loadtest.report.run_file import read_run
from loadtest.report.trust import cautions
from loadtest.simulate.calibration.fit import CalibrationRun, fit, predict, whole
from loadtest.simulate.calibration.served import Samples, guesses_otherwise, settings_of
from loadtest.simulate.cluster import ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.options import add_server_options, cost_of, server_of
from loadtest.simulate.specs import Costs, write_costs

_SETTINGS = ("max_step_tokens", "max_running", "block_size", "kv_blocks")  # of `ServerShape`: what metrics may tell
DRAWS = 8
BOUNDS = {"p50": 0.15, "p99": 0.25, "mean": 0.15}


@dataclass(frozen=True, slots=True)
class Error:
    """One figure of a run, measured and predicted, in the same unit. `level` is `p50`, `p99` or `mean`."""

    figure: str
    level: str
    measured: float
    predicted: float

    @property
    def relative(self) -> float:
        """The error relative to the measured value, signed."""
        return self.predicted / self.measured - 1

    @property
    def within(self) -> bool:
        """Whether the error is within `BOUNDS`."""
        return abs(self.relative) <= BOUNDS[self.level]


def errors_of(measured: CalibrationRun, cost: CostModel) -> list[Error]:
    """The measured figures of a run beside those that the simulator predicts with `cost`.

    Where it is drawn which answers repeat themselves, these are means over several simulations.
    """
    draws = [predict(measured, cost, seed) for seed in range(DRAWS if cost.costs.repeat_begins else 1)]
    real = whole(measured.run)
    found: list[Error] = []
    for figure in ("ttft", "tpot", "itl", "e2e"):
        theirs, ours = _values(real, figure), [_values(drawn, figure) for drawn in draws]
        if theirs and all(ours):
            for level, share in (("p50", 50), ("p99", 99)):
                predicted = fmean(float(np.percentile(values, share)) for values in ours)
                found.append(Error(figure, level, float(np.percentile(theirs, share)), predicted))
    found.append(Error("tok/s", "mean", _rate(real), fmean(map(_rate, draws))))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Fit, print, write. Returns the exit code: 0 if every error is within bounds, 1 if not, 2 if the arguments are unusable."""
    options = _options(argv)
    try:
        if options.write:
            ready_file(options.write, "--write")
        cost = cost_of(options)
        learned, held_out = (_measured(options, paths) for paths in (options.runs, options.check))
        if not learned:
            raise ValueError("none of these runs can be learned from")
        if not options.no_fit:
            costs = fit(learned, cost)
            cost = CostModel(cost.hardware.with_costs(costs), cost.model, cost.devices)
    except (OSError, ValueError) as error:
        print(f"headrace loadtest calibrate: {error}", file=sys.stderr)
        return 2
    print("\n".join(f"{each.name:>10}  {getattr(cost.costs, each.name):.6g}" for each in fields(Costs)))
    if options.write:
        names = ", ".join(measured.run.label for measured in learned)
        write_costs(cost.costs, options.write, f"{cost.model.name} on {cost.hardware.name}, fitted to {names}")
    errors = [error for measured in learned for error in _table(measured, cost, "learned")]
    errors += [error for measured in held_out for error in _table(measured, cost, "held out")]
    return 0 if all(error.within for error in errors) else 1


def _table(measured: CalibrationRun, cost: CostModel, kind: str) -> list[Error]:
    errors = errors_of(measured, cost)
    print(f"\n{measured.run.label} ({kind}, {len(whole(measured.run))} requests)")
    print(f"{'':>12}{'measured':>12}{'predicted':>12}{'error':>9}")
    for error in errors:
        mark = "" if error.within else f"   more than {BOUNDS[error.level]:.0%}"
        name = f"{error.figure} {error.level}"
        print(f"{name:>12}{error.measured:>12.4g}{error.predicted:>12.4g}{error.relative:>+9.1%}{mark}")
    return errors


def _measured(options: argparse.Namespace, paths: Iterable[Path]) -> list[CalibrationRun]:
    """The runs at `paths` whose figures can be believed; what is left out is said on stderr. Raises RunFileError, OSError."""
    found: list[CalibrationRun] = []
    for path in paths:
        run = read_run(path)
        shape = _shape(options, path, run.scraped.get("after", {}))
        reasons = doubts(run)
        if reasons:
            print(f"headrace loadtest calibrate: {path} is left out: {'; '.join(reasons)}", file=sys.stderr)
        else:
            found.append(CalibrationRun(run, shape))
    return found


def _shape(options: argparse.Namespace, path: Path, scraped: Samples) -> ServerShape:
    """How the server of a run was set up. Raises ValueError, OSError."""
    samples = scraped
    if options.metrics is not None:
        samples = {**scraped, **parse_metrics(options.metrics.read_text(encoding="utf-8"))}
    told, usual = settings_of(samples), ServerShape()
    settled = argparse.Namespace(**vars(options))
    assumed: list[str] = []
    for name in _SETTINGS:
        if getattr(options, name) is not None:
            continue
        value = told.get(name, getattr(usual, name))
        setattr(settled, name, [value] if name == "max_step_tokens" else value)
        if name not in told and value is not None:
            assumed.append(f"--{name.replace('_', '-')} {value}")
    if options.no_prefix_caching is None:
        settled.no_prefix_caching = not told.get("prefix_caching", usual.prefix_caching)
    if told:
        said = ", ".join(f"{name} {value}" for name, value in told.items())
        print(f"headrace loadtest calibrate: {path}: by the server's metrics {said}", file=sys.stderr)
    if assumed:
        print(f"headrace loadtest calibrate: {path}: assumed {', '.join(assumed)}", file=sys.stderr)
    return server_of(settled)


def doubts(run: LoadRun) -> list[str]:
    """Why nothing can be learned from a run, nor predicted of it: it does not say what the server did for its requests."""
    found = [*run.invalid, *cautions(run)]
    if any(record.error is ErrorClass.LEFT for record in run.records):
        found.append("clients left before their answers were complete, and the simulator's do not")
    if guesses_otherwise(run):
        found.append(
            "the server guessed tokens ahead (speculative decoding), and only headrace's guesses are simulated"
        )
    if not whole(run):
        found.append("it has no complete answer")
    return found


def _values(records: Iterable[RequestRecord], figure: str) -> list[float]:
    if figure == "itl":
        return [gap for record in records for gap in record.gaps]
    return [value for record in records if (value := getattr(record, figure)) is not None]


def _rate(records: Sequence[RequestRecord]) -> float:
    """Output tokens per second, from the first intended time to the last end."""
    tokens = sum(count for record in records for _, count in record.tokens)
    begin = min(record.intended for record in records)
    return tokens / (max(record.finished or 0.0 for record in records) - begin)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, with None for each setting of the server that none of them gives."""
    parser = _parser()
    parser.parse_args(argv)  # help has the defaults
    parser.set_defaults(**dict.fromkeys(_SETTINGS), no_prefix_caching=None)
    return parser.parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest calibrate",
        description="Fits the cost model's constants to measured runs and prints the error of its predictions.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN.json", help="runs to learn from")
    parser.add_argument("--check", nargs="+", type=Path, default=[], metavar="RUN.json", help="runs to predict only")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the constants, for `simulate --costs`")
    parser.add_argument("--no-fit", action="store_true", help="only print how far the given constants are off")
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="the text of the server's /metrics, for what no option and no run says of its settings",
    )
    add_server_options(parser)
    return parser
