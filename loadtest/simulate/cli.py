"""`headrace loadtest simulate`: from a trace, a device and a model, the report of the run that they would give."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from loadtest.report import RUN, RunReport
from loadtest.report.objectives import slo
from loadtest.report.output import add_output_options, ready_folder
from loadtest.report.records import (
    MEASURED,
    ErrorClass,
    LoadRun,
    Objective,
    RequestRecord,
    interrupted,
    measured_window,
)
from loadtest.report.trust import FITTED_COSTS
from loadtest.simulate.apart import ApartCluster
from loadtest.simulate.cluster import Cluster, Machines, RolePool, ServerShape, summary
from loadtest.simulate.cost import CostModel
from loadtest.simulate.deadlines import DeadlineGate
from loadtest.simulate.faults.outages import Outages
from loadtest.simulate.faults.report import outage_section
from loadtest.simulate.options import (
    add_crowd_option,
    add_link_options,
    add_machine_options,
    add_role_options,
    add_server_options,
    cost_of,
    machines_of,
    plan_of,
    replicas_of,
    server_of,
)
from loadtest.simulate.policy import PolicyOutcome, header
from loadtest.stops import interruptible
from loadtest.workload.numbers import positive, whole
from loadtest.workload.options import add_request_options
from loadtest.workload.plan import Plan
from scheduler.router.deadlines import Deadline, DeadlineFor
from scheduler.router.policies import OLD_NAMES, ROUTERS, make_router
from scheduler.router.round_robin import RoundRobin

_TOLD_EVERY = 1.0  # seconds between updates of the progress line
_WIDTH = 100  # columns of the table of failures


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate. Returns the exit code: 0 if all went well, 2 if the arguments are unusable, 3 if it was interrupted."""
    options = _parser().parse_args(argv)
    budgets: list[int] = options.max_step_tokens
    outcomes: list[PolicyOutcome] = []  # of runs that are not kept: one may fill the memory
    invalid = False
    try:
        for budget in budgets if options.output else ():
            ready_folder(_folder(options, budget), (RUN,), overwrite=options.overwrite)
        cost, plan = cost_of(options), plan_of(options)
        for budget in budgets:
            report = _one(options, cost, plan, budget)
            outcomes += [PolicyOutcome.of(budget, report.summary)] if len(budgets) > 1 else []
            invalid = bool(report.run.invalid)
            del report
            if invalid:
                break
    except (ValueError, OSError) as error:
        print(f"headrace loadtest simulate: {error}", file=sys.stderr)
        return 2
    if outcomes:
        print(header("max_step_tokens"), *outcomes, sep="\n")
    return 3 if invalid else 0


def _folder(options: argparse.Namespace, budget: int) -> Path:
    """Where the run with this budget goes."""
    folder: Path = options.output
    return folder / str(budget) if len(options.max_step_tokens) > 1 else folder


def simulate(
    plan: Plan, cluster: Cluster, *, label: str, objectives: dict[str, Objective], about: dict[str, object]
) -> LoadRun:
    """Run `plan` through `cluster` and return it in the form of a measured run, as far as it came before it was interrupted."""
    began = time.time()
    invalid: list[str] = []
    try:
        with interruptible():
            cluster.run(plan.requests, _progress(len(plan.requests)))
    except KeyboardInterrupt:
        for record in cluster.records:
            if record.finished is None and record.error is None:
                record.error, record.detail = ErrorClass.CLIENT, "the run was interrupted"
        invalid = [interrupted(len(cluster.records), len(plan.requests))]
    records = cluster.records
    end = max((record.finished for record in records if record.finished is not None), default=0.0)
    after = summary(list(cluster.stats()))
    return LoadRun(
        label=label,
        target="simulation",
        started=began,
        duration=end - plan.requests[0].intended,
        plan=plan.described | about | {MEASURED: _measured(plan, records)},
        records=records,
        objectives=objectives,
        invalid=invalid,
        problems=plan.problems,
        scraped={"before": dict.fromkeys(after, 0.0), "after": after},
    )


def _measured(plan: Plan, records: Sequence[RequestRecord]) -> tuple[float, float | None] | None:
    return measured_window(plan.described.get("warm_up", 0.0), plan.described.get("cool_down", 0.0), records)


def _cluster(
    options: argparse.Namespace, cost: CostModel, shape: ServerShape, machines: Machines, gate: DeadlineGate | None
) -> Cluster:
    replicas = replicas_of(options, cost, options.slo)
    switching = replicas.switching if isinstance(replicas, RolePool) else None
    router = make_router(options.router, decode_slo=switching.bounds.tpot if switching else None)
    apart = isinstance(router, RoundRobin) and not (gate or machines.keeper or machines.failures)
    if apart and isinstance(replicas, int) and replicas > 1:
        return ApartCluster(cost, shape, replicas, options.processes)
    if options.processes is not None:
        raise ValueError(
            "--processes is for replicas that take turns, without deadlines, keepers and failures: --router round-robin"
        )
    return Cluster(cost, shape, router, replicas, machines=machines, deadlines=gate)


def _one(options: argparse.Namespace, cost: CostModel, plan: Plan, budget: int) -> RunReport:
    shape, machines = server_of(options, budget), machines_of(options, cost)
    gate = DeadlineGate(options.deadline) if options.deadline else None
    cluster = _cluster(options, cost, shape, machines, gate)
    about = {
        "hardware": cost.hardware.name,
        "model": cost.model.name,
        "costs": asdict(cost.costs),
        FITTED_COSTS: cost.hardware.fitted,
        "devices": cost.devices,
        "replicas": len(cluster.replicas),
        "roles": [replica.role.value for replica in cluster.replicas],
        "router": options.router,
        "context": cluster.config.context,
        "machines": asdict(machines),
        "server": asdict(shape) | {"kv_blocks": cluster.blocks},
    }
    several = len(options.max_step_tokens) > 1
    label = options.label or f"{cost.model.name} on {len(cluster.replicas)} x {cost.hardware.name}"
    label = f"{label}, {budget} tokens a step" if several else label
    began = time.perf_counter()
    run = simulate(plan, cluster, label=label, objectives=options.slo, about=about)
    if not any(record.fits for record in run.records):
        why = (
            f"{run.records[0].detail}: no request fits"
            if run.records
            else "it was interrupted before the first request"
        )
        raise ValueError(f"{why}; --scale, --max-prompt and --max-output shorten them")
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
    report = RunReport(run)
    if options.output:
        for path in report.write(_folder(options, budget)):
            print(path, file=sys.stderr)
    if not several:
        report.print_table()
        if options.fail:
            _print_outages(run, cluster.outages)
    return report


def _print_outages(run: LoadRun, outages: Outages) -> None:
    from rich.console import Console

    from loadtest.report.table import section_table

    Console(width=max(Console().width, _WIDTH)).print(section_table(outage_section(run, outages)))


def _progress(total: int) -> Callable[[int], None]:
    """A callback that prints the progress, if stderr is a terminal."""
    told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        if (now := time.monotonic()) - told > _TOLD_EVERY:
            told = now
            print(f"\r{done} of {total} requests have arrived", end="" if done < total else "\n", file=sys.stderr)

    return tell if sys.stderr.isatty() else lambda _: None


def _deadline(text: str) -> Deadline:
    what, _, seconds = text.partition("=")
    try:
        return Deadline(positive(seconds), DeadlineFor(what))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no deadline; write first_token=2 or end=10, in seconds"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest simulate",
        description="What a trace would see: the real scheduler over simulated time, with a cost model for its steps.",
    )
    add_server_options(parser)
    add_role_options(parser)
    add_link_options(parser)
    add_machine_options(parser)
    add_crowd_option(parser)
    parser.add_argument("--router", choices=[*ROUTERS, *OLD_NAMES], default="prefix-aware", help="[%(default)s]")
    parser.add_argument(
        "--processes",
        type=whole,
        metavar="N",
        help="most that are started for replicas that take turns (--router round-robin) [as many as there are cores]",
    )
    parser.add_argument(
        "--deadline",
        type=_deadline,
        metavar="first_token=S",
        help="of every request, or end=S; those for which it would not be met are refused at once",
    )
    add_request_options(parser)
    group = parser.add_argument_group("report")
    group.add_argument(
        "--slo", type=slo, default={}, metavar="ttft=500ms,tpot=50ms", help="objectives that goodput counts"
    )
    group.add_argument("--label", help="the run's name in reports")
    add_output_options(parser)
    return parser
