"""`headrace loadtest simulate`: from a trace, a device and a model, the report of the run that they would give."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from loadtest.report import print_table, write_report
from loadtest.report.records import LoadRun, Objective
from loadtest.simulate.cluster import Cluster, RolePool, summary
from loadtest.simulate.cost import CostModel
from loadtest.simulate.deadlines import DeadlineGate
from loadtest.simulate.options import (
    add_link_options,
    add_plan_options,
    add_role_options,
    add_server_options,
    cost_of,
    parse_slo,
    plan_of,
    replicas_of,
    server_of,
)
from loadtest.simulate.policy import PolicyOutcome, header
from loadtest.simulate.specs import SpecError
from loadtest.workload.arrivals import ArrivalError
from loadtest.workload.plan import Plan
from loadtest.workload.traces.problems import TraceError
from scheduler.router.deadlines import Deadline, DeadlineFor
from scheduler.router.policies import OLD_NAMES, ROUTERS, make_router

_TOLD_EVERY = 1.0  # seconds between updates of the progress line


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate. Returns the exit code: 0 if all went well, 2 if the arguments are unusable."""
    options = _parser().parse_args(argv)
    try:
        cost, plan = cost_of(options), plan_of(options, options.trace)
        rows = [_one(options, cost, plan, budget) for budget in options.max_step_tokens]
    except (ArrivalError, SpecError, TraceError, ValueError) as error:
        print(f"headrace loadtest simulate: {error}", file=sys.stderr)
        return 2
    if len(rows) > 1:
        print(header("max_step_tokens"))
        for row in rows:
            print(row)
    return 0


def simulate(
    plan: Plan, cluster: Cluster, *, label: str, objectives: dict[str, Objective], about: dict[str, object]
) -> LoadRun:
    """Run `plan` through `cluster` and return it in the form of a measured run."""
    began = time.time()
    records = cluster.run(plan.requests, _progress(len(plan.requests)))
    end = max((record.finished for record in records if record.finished is not None), default=0.0)
    after = summary(list(cluster.stats()))
    return LoadRun(
        label=label,
        target="simulation",
        started=began,
        duration=end - plan.requests[0].intended,
        plan=plan.described | about,
        records=records,
        objectives=objectives,
        problems=plan.problems,
        scraped={"before": dict.fromkeys(after, 0.0), "after": after},
    )


def _one(options: argparse.Namespace, cost: CostModel, plan: Plan, budget: int) -> PolicyOutcome:
    shape = server_of(options, budget)
    replicas = replicas_of(options, cost, options.slo)
    gate = DeadlineGate(options.deadline) if options.deadline else None
    switching = replicas.switching if isinstance(replicas, RolePool) else None
    slo = switching.bounds.tpot if switching else None
    cluster = Cluster(cost, shape, make_router(options.router, decode_slo=slo), replicas, deadlines=gate)
    about = {
        "hardware": cost.hardware.name,
        "model": cost.model.name,
        "costs": asdict(cost.costs),
        "devices": cost.devices,
        "replicas": len(cluster.replicas),
        "roles": [replica.role.value for replica in cluster.replicas],
        "router": options.router,
        "server": asdict(shape) | {"kv_blocks": cluster.blocks, "context": cluster.config.context},
    }
    several = len(options.max_step_tokens) > 1
    label = options.label or f"{cost.model.name} on {len(cluster.replicas)} x {cost.hardware.name}"
    label = f"{label}, {budget} tokens a step" if several else label
    began = time.perf_counter()
    run = simulate(plan, cluster, label=label, objectives=options.slo, about=about)
    took = time.perf_counter() - began
    print(
        f"{label}: {len(run.records)} requests, {run.duration:.0f} s simulated in {took:.1f} s "
        f"({len(run.records) / took:.0f} requests/s)",
        file=sys.stderr,
    )
    for at, switch in cluster.watch.switches if cluster.watch else []:
        print(f"{at:.0f} s: replica {switch.engine}: {switch}", file=sys.stderr)
    if gate is not None:
        print(gate, file=sys.stderr)
    if options.output:
        folder = options.output / str(budget) if several else options.output
        for path in write_report(run, folder):
            print(path, file=sys.stderr)
    if not several:
        print_table(run)
    return PolicyOutcome.of(budget, run)


def _progress(total: int) -> Callable[[int], None]:
    """A callback that prints the progress, if stderr is a terminal."""
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if done % 256 == 0 and (now := time.monotonic()) - told > _TOLD_EVERY:
            told = now
            print(f"\r{done} of {total} requests have arrived", end="" if done < total else "\n", file=sys.stderr)

    return tell if sys.stderr.isatty() else lambda _: None


def _deadline(text: str) -> Deadline:
    what, _, seconds = text.partition("=")
    try:
        return Deadline(float(seconds), DeadlineFor(what))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no deadline; write first_token=2 or end=10, in seconds"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest simulate",
        description="What a trace would see: the real scheduler over simulated time, with a cost model for its steps.",
    )
    parser.add_argument("trace", help="a file in any known format")
    add_server_options(parser)
    add_role_options(parser)
    add_link_options(parser)
    parser.add_argument("--router", choices=[*ROUTERS, *OLD_NAMES], default="prefix-aware", help="[%(default)s]")
    parser.add_argument(
        "--deadline",
        type=_deadline,
        metavar="first_token=S",
        help="of every request, or end=S; those for which it would not be met are refused at once",
    )
    add_plan_options(parser)
    group = parser.add_argument_group("report")
    group.add_argument(
        "--slo", type=parse_slo, default={}, metavar="ttft=500ms,tpot=50ms", help="objectives that goodput counts"
    )
    group.add_argument("--label", help="the run's name in reports")
    group.add_argument("--output", type=Path, metavar="DIR", help="write run.json, report.html and pictures there")
    return parser
