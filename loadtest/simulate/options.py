"""The command line options of the simulator's commands, and what is built from them."""

import argparse
from dataclasses import replace
from pathlib import Path

from loadtest.report.objectives import parse_objectives
from loadtest.report.records import Objective
from loadtest.simulate.cluster import RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_costs, load_hardware, load_model
from loadtest.workload.arrivals import ArrivalError, parse_arrivals
from loadtest.workload.plan import LoadShape, Plan, make_plan
from loadtest.workload.traces.read import FORMATS, read_trace
from scheduler.policies.factory import POLICIES
from scheduler.router.role_switching import PhaseBounds, RoleSwitching
from scheduler.router.view import Role
from scheduler.types.step import ChunkPhase


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Which part of a trace is used and how it arrives: the fields of `LoadShape`."""
    group = parser.add_argument_group("requests")
    group.add_argument("--format", choices=list(FORMATS), help="of the trace [recognised by its first line]")
    group.add_argument("--strict", action="store_true", help="stop at the first broken row of the trace")
    group.add_argument("--window", type=_window, metavar="A:B", help="seconds of the trace to take")
    group.add_argument("--limit", type=int, metavar="N", help="at most N requests")
    group.add_argument("--speed", type=float, default=1.0, help="times faster than the trace [%(default)g]")
    group.add_argument("--duration", type=float, metavar="S", help="stretch the arrivals over S seconds")
    group.add_argument(
        "--rate", type=float, metavar="R", help="stretch the arrivals to R requests per second on average"
    )
    group.add_argument("--arrivals", type=_arrivals, metavar="KIND", help="drawn arrivals: poisson:rate=5 and the like")
    group.add_argument("--spread", action="store_true", help="spread arrivals inside the tick of the trace's stamps")
    group.add_argument("--scale", type=float, default=1.0, help="factor on all lengths [%(default)g]")
    group.add_argument("--max-prompt", type=int, metavar="N", help="cut prompts to N tokens")
    group.add_argument("--max-output", type=int, metavar="N", help="cut answers to N tokens")
    group.add_argument("--seed", type=int, default=0, help="of everything drawn at random [%(default)s]")


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The server that is simulated: hardware, model, and the settings of each replica."""
    shape = ServerShape()
    group = parser.add_argument_group("server")
    group.add_argument("--hardware", required=True, help="a YAML file, or a name in configs/presets/hardware")
    group.add_argument("--model", required=True, help="a YAML file, or a name in configs/presets/models")
    group.add_argument(
        "--costs", type=Path, metavar="FILE", help="constants from `calibrate`, in place of the hardware's own"
    )
    group.add_argument("--devices", type=int, default=1, metavar="N", help="devices per replica [%(default)s]")
    group.add_argument(
        "--max-step-tokens",
        type=_numbers,
        default=[shape.max_step_tokens],
        metavar="N[,N..]",
        help=f"token budget of a step; several are simulated one after another [{shape.max_step_tokens}]",
    )
    group.add_argument(
        "--max-running", type=int, default=shape.max_running, metavar="N", help="sequences per step [%(default)s]"
    )
    group.add_argument(
        "--max-waiting", type=int, default=shape.max_waiting, metavar="N", help="beyond it, 429 [%(default)s]"
    )
    group.add_argument("--block-size", type=int, default=shape.block_size, metavar="N", help="in tokens [%(default)s]")
    group.add_argument("--kv-blocks", type=int, metavar="N", help="per replica [what the device's memory holds]")
    group.add_argument("--context", type=int, metavar="N", help="longest request in tokens [the model's]")
    group.add_argument(
        "--scheduling",
        choices=POLICIES,
        default=shape.scheduling,
        help="each class of the trace is a tenant [%(default)s]",
    )
    group.add_argument("--no-prefix-caching", action="store_true", help="do not share prefixes")


def add_link_options(parser: argparse.ArgumentParser) -> None:
    """The way of KV from one replica to another."""
    group = parser.add_argument_group("hand-over")
    group.add_argument(
        "--link-bandwidth",
        type=_positive,
        metavar="B",
        help="bytes per second at which a replica hands KV over [that of the hardware's host tier]",
    )
    group.add_argument(
        "--link-latency",
        type=float,
        default=0.0005,
        metavar="S",
        help="seconds that a hand-over takes beside that [%(default)g]",
    )


def add_role_options(parser: argparse.ArgumentParser) -> None:
    """How many replicas there are, and what each is for."""
    group = parser.add_argument_group("replicas")
    many = group.add_mutually_exclusive_group()
    many.add_argument("--replicas", type=int, default=1, metavar="N", help="schedulers behind a router [%(default)s]")
    many.add_argument(
        "--roles",
        type=parse_roles,
        metavar="prefill:1,decode:2",
        help="how many replicas there are of each role: mixed, prefill, decode",
    )
    group.add_argument(
        "--role-switching",
        choices=("auto", "off"),
        default="auto",
        help="with prefill and decode replicas and --slo ttft=..,tpot=..: change a replica's role when a phase falls behind "
        "[%(default)s]",
    )


def parse_roles(text: str) -> tuple[Role, ...]:
    """A role for each replica, from how many there are of each. Raises ArgumentTypeError."""
    found: dict[Role, int] = {}
    for part in text.split(","):
        name, _, many = part.strip().partition(":")
        if name not in list(Role) or not many.isdecimal() or int(many) < 1 or Role(name) in found:
            raise argparse.ArgumentTypeError(
                f"{part!r} must be ROLE:COUNT with a ROLE of {', '.join(Role)}, each given once, as in prefill:1,decode:2"
            )
        found[Role(name)] = int(many)
    roles = tuple(role for role, many in found.items() for _ in range(many))
    for phase in ChunkPhase:
        if not any(role.takes(phase) for role in roles):
            raise argparse.ArgumentTypeError(f"{text!r} has no replica for the phase {phase.value!r}")
    return roles


def replicas_of(options: argparse.Namespace, cost: CostModel, objectives: dict[str, Objective]) -> int | RolePool:
    """The replicas that the options describe."""
    if options.roles is None:
        replicas: int = options.replicas
        return replicas
    pool = pool_of(options, cost, options.roles)
    slo = objectives.get("default")
    if options.role_switching == "off" or slo is None or slo.ttft is None or slo.tpot is None:
        return pool
    if not {Role.PREFILL, Role.DECODE} <= set(options.roles):
        return pool
    return replace(pool, switching=RoleSwitching(PhaseBounds(slo.ttft, slo.tpot)))


def pool_of(options: argparse.Namespace, cost: CostModel, roles: tuple[Role, ...]) -> RolePool:
    """Replicas of these roles, with the link that the options describe."""
    bandwidth = options.link_bandwidth or cost.devices * cost.hardware.tier_bytes_per_second["host"]
    return RolePool(roles=roles, bytes_per_second=bandwidth, seconds=options.link_latency)


def load_of(options: argparse.Namespace) -> LoadShape:
    """Which part of a trace is used and how it arrives. Raises ArrivalError."""
    return LoadShape(
        window=options.window,
        limit=options.limit,
        speed=options.speed,
        duration=options.duration,
        rate=options.rate,
        spread=options.spread,
        arrivals=options.arrivals,
        scale=options.scale,
        max_prompt=options.max_prompt,
        max_output=options.max_output,
        seed=options.seed,
    )


def plan_of(options: argparse.Namespace, trace: str) -> Plan:
    """The plan for `trace`.

    Raises:
        TraceError: the trace cannot be read.
        ArrivalError: the arrivals make no sense, or are a closed loop.
    """
    plan = make_plan(read_trace(trace, options.format, strict=options.strict), load_of(options))
    if plan.closed:
        raise ArrivalError("the simulator takes arrivals with times, not closed loops")
    return plan


def parse_slo(text: str) -> dict[str, Objective]:
    """Objectives by class. Raises ArgumentTypeError."""
    try:
        return parse_objectives(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def cost_of(options: argparse.Namespace) -> CostModel:
    """The cost model that the options describe. Raises SpecError."""
    hardware = load_hardware(options.hardware)
    if options.costs:
        hardware = hardware.with_costs(load_costs(options.costs))
    return CostModel(hardware, load_model(options.model), options.devices)


def server_of(options: argparse.Namespace, max_step_tokens: int) -> ServerShape:
    """The settings of each replica."""
    return ServerShape(
        max_step_tokens=max_step_tokens,
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        block_size=options.block_size,
        kv_blocks=options.kv_blocks,
        context=options.context,
        prefix_caching=not options.no_prefix_caching,
        scheduling=options.scheduling,
    )


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def _window(text: str) -> tuple[float, float]:
    begin, colon, end = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not a window; write seconds, such as 0:600, 0: or :600")
    return float(begin or 0), float(end or "inf")


def _arrivals(text: str) -> object:
    try:
        return parse_arrivals(text)
    except ArrivalError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("a step has at least one token")
    return numbers
