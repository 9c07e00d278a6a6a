"""The command line options of the simulator's commands, and what is built from them."""

import argparse
from dataclasses import replace
from pathlib import Path

from loadtest.report.records import Objective
from loadtest.simulate.cluster import Machines, RolePool, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.faults.failure import Failure, parse_failure
from loadtest.simulate.keepers.keepers import KeeperShape
from loadtest.simulate.links import LINKS, link_rate
from loadtest.simulate.shapes.named import HELP, named_model
from loadtest.simulate.specs import KV_FORMATS, load_costs, load_hardware, with_kv
from loadtest.workload.arrivals import ArrivalError
from loadtest.workload.crowd import crowd
from loadtest.workload.numbers import not_negative, positive, whole
from loadtest.workload.options import shape_of, trace_of
from loadtest.workload.plan import Plan, make_plan
from scheduler.policies.factory import POLICIES
from scheduler.router.role_switching import PhaseBounds, RoleSwitching
from scheduler.router.view import Role
from scheduler.types.step import ChunkPhase


def add_crowd_option(parser: argparse.ArgumentParser) -> None:
    """How many times as many users there are."""
    parser.add_argument(
        "--crowd",
        type=whole,
        default=1,
        metavar="N",
        help="play N stretches of the trace at once, each as long as --window and with texts of its own [%(default)s]",
    )


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """The server that is simulated: hardware, model, and the settings of each replica."""
    shape = ServerShape()
    group = parser.add_argument_group("server")
    group.add_argument("--hardware", required=True, help="a YAML file, or a name in configs/presets/hardware")
    add_engine_options(group)
    group.add_argument("--devices", type=whole, default=1, metavar="N", help="devices per replica [%(default)s]")
    group.add_argument(
        "--max-step-tokens",
        type=numbers,
        default=[shape.max_step_tokens],
        metavar="N[,N..]",
        help=f"token budget of a step; several are simulated one after another [{shape.max_step_tokens}]",
    )
    group.add_argument(
        "--max-running", type=whole, default=shape.max_running, metavar="N", help="sequences per step [%(default)s]"
    )
    group.add_argument(
        "--gpu-kv",
        choices=KV_FORMATS,
        default="auto",
        help="keys and values: as the model has them, or in 8 bits [%(default)s]",
    )


def add_engine_options(group: argparse._ArgumentGroup) -> None:
    """The model, and those settings of an engine that nobody searches."""
    shape = ServerShape()
    group.add_argument("--model", required=True, help=HELP)
    group.add_argument(
        "--costs", type=Path, metavar="FILE", help="constants from `calibrate`, in place of the hardware's own"
    )
    group.add_argument(
        "--max-waiting", type=whole, default=shape.max_waiting, metavar="N", help="beyond it, 429 [%(default)s]"
    )
    group.add_argument(
        "--block-size", type=whole, default=shape.block_size, metavar="N", help="in tokens [%(default)s]"
    )
    group.add_argument("--kv-blocks", type=whole, metavar="N", help="per replica [what the device's memory holds]")
    group.add_argument("--context", type=whole, metavar="N", help="longest request in tokens [the model's]")
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
        type=_link,
        metavar="B",
        help=f"bytes per second at which a replica hands KV over, or one of {', '.join(LINKS)} [that of the hardware's host tier]",
    )
    group.add_argument(
        "--link-latency",
        type=not_negative,
        default=0.0005,
        metavar="S",
        help="seconds that a hand-over takes beside that [%(default)g]",
    )


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """What the replicas run on, and what of it fails."""
    group = parser.add_argument_group("machines")
    group.add_argument("--node-size", type=whole, default=8, metavar="N", help="replicas on a node [%(default)s]")
    group.add_argument(
        "--keeper-gib",
        type=positive,
        metavar="G",
        help="of KV that each node keeps in its memory for its replicas [none]",
    )
    group.add_argument(
        "--keeper-reach",
        choices=("node", "all"),
        default="node",
        help="load from the node's own keeper, or over the link from those of all nodes [%(default)s]",
    )
    group.add_argument(
        "--peer-bandwidth",
        type=_link,
        metavar="B",
        help="bytes per second at which a replica loads from another node, or a link's name [that of the hardware's peer tier]",
    )
    group.add_argument(
        "--fail",
        type=_failure,
        action="append",
        default=[],
        metavar="WHAT:N@S[+R]",
        help="node:5@60+120: node 5 dies after 60 s, with its keeper, and is back after 120 s more; without +120 it never is. "
        "replica:3@60+20: one replica; the keeper stays. May be given several times",
    )


def add_role_options(parser: argparse.ArgumentParser) -> None:
    """How many replicas there are, and what each is for."""
    group = parser.add_argument_group("replicas")
    many = group.add_mutually_exclusive_group()
    many.add_argument("--replicas", type=whole, default=1, metavar="N", help="schedulers behind a router [%(default)s]")
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
    return pool if options.role_switching == "off" else switching_pool(pool, objectives.get("default"))


def switching_pool(pool: RolePool, slo: Objective | None) -> RolePool:
    """The same pool, whose roles switch if it has both and there are bounds for both phases."""
    if slo is None or slo.ttft is None or slo.tpot is None or not {Role.PREFILL, Role.DECODE} <= set(pool.roles):
        return pool
    return replace(pool, switching=RoleSwitching(PhaseBounds(slo.ttft, slo.tpot)))


def pool_of(options: argparse.Namespace, cost: CostModel, roles: tuple[Role, ...]) -> RolePool:
    """Replicas of these roles, with the link that the options describe."""
    bandwidth = options.link_bandwidth or cost.devices * cost.hardware.tier_bytes_per_second["host"]
    return RolePool(roles=roles, bytes_per_second=bandwidth, seconds=options.link_latency)


def machines_of(options: argparse.Namespace, cost: CostModel) -> Machines:
    """The machines that the options describe."""
    keeper, tiers = None, cost.hardware.tier_bytes_per_second
    if options.keeper_gib is not None:
        rates = {"host": cost.devices * tiers["host"], "peer": options.peer_bandwidth or cost.devices * tiers["peer"]}
        keeper = KeeperShape(bytes=options.keeper_gib * 2**30, reach=options.keeper_reach == "all", rates=rates)
    return Machines(replicas=options.node_size, keeper=keeper, failures=tuple(options.fail))


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the options describe.

    Raises:
        TraceError: the trace cannot be read.
        ArrivalError: the arrivals make no sense, or are a closed loop.
    """
    trace, load = trace_of(options), shape_of(options)
    plan = crowd(trace, load, options.crowd) if options.crowd > 1 else make_plan(trace, load)
    if plan.closed:
        raise ArrivalError("the simulator takes arrivals with times, not closed loops (--arrivals)")
    return plan


def cost_of(options: argparse.Namespace) -> CostModel:
    """The cost model that the options describe. Raises SpecError."""
    hardware = load_hardware(options.hardware)
    if options.costs:
        hardware = hardware.with_costs(load_costs(options.costs))
    return CostModel(hardware, with_kv(named_model(options.model), options.gpu_kv), options.devices)


def server_of(options: argparse.Namespace, max_step_tokens: int | None = None) -> ServerShape:
    """The settings of each replica; ValueError if a command that is for one budget is given several."""
    if max_step_tokens is None and len(options.max_step_tokens) > 1:
        raise ValueError("one --max-step-tokens is expected here")
    return ServerShape(
        max_step_tokens=max_step_tokens or options.max_step_tokens[0],
        max_running=options.max_running,
        max_waiting=options.max_waiting,
        block_size=options.block_size,
        kv_blocks=options.kv_blocks,
        context=options.context,
        prefix_caching=not options.no_prefix_caching,
        scheduling=options.scheduling,
    )


def _link(text: str) -> float:
    try:
        return link_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _failure(text: str) -> Failure:
    try:
        return parse_failure(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between them. Raises ArgumentTypeError."""
    return [whole(part) for part in text.split(",")]
