"""`headrace loadtest layouts`: how many GPUs should compute prompts, how many should decode, and how many an engine should have.

    headrace loadtest layouts TRACE --hardware h200 --model llama-3-8b --gpus 8 --slo ttft=500ms,tpot=50ms

Every way to share the GPUs out is simulated with the requests of the trace at rates that a search chooses; the best sustains the
highest rate at which the objectives are met. The same arguments give the same answer.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TypeVar

from loadtest.planner.layout import Layout, layouts, named_layouts
from loadtest.planner.report import as_json, serve_flags, table
from loadtest.planner.tightness import Tightness, tightness_table
from loadtest.planner.tournament import tournament
from loadtest.planner.trial import Workbench, observe, try_out
from loadtest.report.objectives import slo
from loadtest.report.rows import Section, figure
from loadtest.report.trust import UNFITTED
from loadtest.search import RateSearch
from loadtest.simulate.cost import CostModel, Work
from loadtest.simulate.options import (
    add_link_options,
    add_server_options,
    cost_of,
    parse_roles,
    server_of,
)
from loadtest.simulate.specs import SpecError
from loadtest.workload.arrivals import ArrivalError, Closed, Poisson
from loadtest.workload.numbers import positive, share, whole
from loadtest.workload.options import add_request_options, shape_of, trace_of
from loadtest.workload.plan import make_plan
from loadtest.workload.traces.problems import TraceError
from scheduler.router.policies import ROUTERS
from scheduler.router.view import Role

_T = TypeVar("_T")
_WIDE = 1000.0  # times the first rate, in both directions, that the search may go
_WIDTH = 110  # columns of the table
_DECODES = 32  # sequences of a step, for the first guess of a rate


def main(argv: Sequence[str] | None = None) -> int:
    """Plan. Returns the exit code: 1 if no layout meets the objectives at any rate, 2 if the arguments are unusable."""
    options = _parser().parse_args(argv)
    try:
        bench = _bench(options)
        candidates = layouts(bench.hardware, bench.model, options.gpus, bench.server.block_size)
        if options.layouts:
            wanted = named_layouts(options.layouts, options.gpus)
            candidates = [layout for layout in candidates if layout in wanted]
        search = _search(options, bench)
        if options.slo_scales:
            return _tightness(options, bench, candidates)
        winner, standings = tournament(candidates, search, _measure(bench, options.jobs, try_out))
    except (ArrivalError, SpecError, TraceError, ValueError, OSError) as error:
        print(f"headrace loadtest layouts: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(as_json(winner, standings, bench, search.goal), indent=2))
        return 0 if winner else 1
    _print(table(standings, search.goal), bench)
    if winner is None:
        print("\nNo layout meets the objectives at any rate that was tried.")
        return 1
    print(
        f"\n{winner.layout} with {winner.layout.devices} GPUs each: {figure(winner.goodput)} requests/s within their objectives."
    )
    print(f"headrace serve {' '.join(serve_flags(winner, bench))}")
    return 0


def _print(section: Section, bench: Workbench) -> None:
    from rich.console import Console

    from loadtest.report.table import section_table

    Console(width=max(Console().width, _WIDTH)).print(section_table(section))
    if not bench.hardware.fitted:
        print(f"\n{UNFITTED.format(bench.hardware.name)}.")


def _tightness(options: argparse.Namespace, bench: Workbench, candidates: Sequence[Layout]) -> int:
    if options.json:
        raise ValueError("--slo-scales prints a table: leave out --json")
    bench = replace(bench, paced=False)
    sweep = Tightness(bench, candidates, lambda: _search(options, bench), _measure(bench, options.jobs, observe))
    rows = [sweep.row(scale) for scale in options.slo_scales]
    _print(tightness_table(rows, bench, options.goal), bench)
    return 0 if any(row.mixed or row.split for row in rows) else 1


def _bench(options: argparse.Namespace) -> Workbench:
    """What is simulated. Raises ValueError for options that a plan decides itself."""
    decided = [name for name in ("rate", "duration", "limit") if getattr(options, name) is not None]
    decided += ["speed"] if options.speed != 1 else []
    decided += ["devices"] if options.devices != 1 else []
    if decided:
        raise ValueError(
            f"a plan decides --{decided[0]} itself; see --gpus, --seconds, --least, --most, --start and --highest"
        )
    if not options.slo:
        raise ValueError("the best layout depends on the objectives: give --slo ttft=500ms,tpot=50ms")
    load = shape_of(options)
    if isinstance(load.arrivals, Closed):
        raise ArrivalError("the simulator takes arrivals with times, not closed loops (--arrivals)")
    cost = cost_of(options)
    return Workbench(
        trace=trace_of(options),
        load=load,
        hardware=cost.hardware,
        model=cost.model,
        server=server_of(options),
        router=options.router,
        objectives=options.slo,
        bandwidth=options.link_bandwidth,
        latency=options.link_latency,
        seconds=options.seconds,
        least=options.least,
        most=options.most,
    )


def _search(options: argparse.Namespace, bench: Workbench) -> RateSearch:
    start = options.start or options.gpus * _guess(bench)
    return RateSearch(
        start=start,
        lowest=min(start, options.lowest or start / _WIDE),
        highest=max(start, options.highest or start * _WIDE),
        goal=options.goal,
        precision=options.precision,
        repeats=1,
    )


def _guess(bench: Workbench) -> float:
    """Requests per second that a GPU may sustain: those that keep it half busy."""
    requests = make_plan(bench.trace, replace(bench.load, rate=1.0, limit=bench.least)).requests
    prompt = sum(request.prompt_tokens for request in requests) / len(requests) or 1.0
    output = sum(request.output_tokens for request in requests) / len(requests)
    cost = CostModel(bench.hardware, bench.model)
    chunk = bench.server.max_step_tokens
    prefill = cost.seconds(Work(chunk, 1, 1, 0, chunk, chunk * (chunk + 1) // 2)) / chunk
    keys = round(_DECODES * (prompt + output / 2))
    decode = cost.seconds(Work(_DECODES, _DECODES, _DECODES, keys)) / _DECODES
    return 0.5 / (prompt * prefill + output * decode)


def _measure(
    bench: Workbench, jobs: int, trial: Callable[[Workbench, Layout, float], _T]
) -> Callable[[Sequence[tuple[Layout, float]]], Sequence[_T]]:
    """Simulates layouts, several at a time where there are several."""

    def measure(pairs: Sequence[tuple[Layout, float]]) -> Sequence[_T]:
        if jobs == 1 or len(pairs) <= 1:
            return [trial(bench, *pair) for pair in pairs]
        with ProcessPoolExecutor(min(jobs, len(pairs)), initializer=_keep, initargs=(bench,)) as pool:
            return list(pool.map(partial(_try_kept, trial), pairs))

    return measure


_kept: list[Workbench] = []  # of this process, which has been started to simulate


def _keep(bench: Workbench) -> None:
    _kept[:] = [bench]


def _try_kept(trial: Callable[[Workbench, Layout, float], _T], pair: tuple[Layout, float]) -> _T:
    return trial(_kept[0], *pair)


def _scales(text: str) -> list[float]:
    try:
        scales = [float(part) for part in text.split(",")]
    except ValueError:
        scales = []
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers above 0, such as 0.5,1,2")
    return scales


def _layouts(text: str) -> list[tuple[Role, ...]]:
    return [parse_roles(part) for part in text.split("/")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest layouts",
        description="Find what a number of GPUs is best used for: how many engines, of how many GPUs each, with which roles.",
    )
    parser.add_argument("--gpus", type=whole, required=True, metavar="N", help="of the kind that --hardware names")
    parser.add_argument("--slo", type=slo, default={}, metavar="ttft=500ms,tpot=50ms", help="objectives, required")
    parser.add_argument(
        "--slo-scales",
        type=_scales,
        metavar="S[,S..]",
        help="multiply all objectives by each of these, and compare the best mixed layout with the best split one at each",
    )
    parser.add_argument(
        "--layouts",
        type=_layouts,
        metavar="ROLES[/ROLES..]",
        help="only these: mixed:8/prefill:2,decode:6 and the like, which share the GPUs out evenly [all there are]",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every trial")
    add_server_options(parser)
    parser.add_argument("--router", choices=ROUTERS, default="prefix-aware", help="[%(default)s]")
    add_link_options(parser)
    add_request_options(parser)
    parser.set_defaults(arrivals=Poisson())
    group = parser.add_argument_group("search")
    group.add_argument("--goal", type=share, default=0.9, help="share of requests that must meet --slo [%(default)g]")
    group.add_argument("--start", type=positive, metavar="R", help="first rate, requests/s [by the cost model]")
    group.add_argument("--lowest", type=positive, metavar="R", help="no rate below [a thousandth of the first]")
    group.add_argument("--highest", type=positive, metavar="R", help="no rate above [a thousand times the first]")
    group.add_argument("--precision", type=positive, default=0.05, help="relative, of the rate found [%(default)g]")
    group.add_argument(
        "--seconds", type=positive, default=30.0, metavar="S", help="of arrivals per trial [%(default)g]"
    )
    group.add_argument("--least", type=whole, default=200, metavar="N", help="fewest requests per trial [%(default)s]")
    group.add_argument("--most", type=whole, default=1000, metavar="N", help="most requests per trial [%(default)s]")
    group.add_argument(
        "--jobs", type=whole, default=os.cpu_count() or 1, metavar="N", help="processes that simulate [the cores]"
    )
    return parser
