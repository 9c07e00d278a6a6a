"""`headrace loadtest plan`: the cheapest set of devices that keeps the objectives under a trace's load.

    headrace loadtest plan TRACE --model llama-3-8b --hardware h200 --slo ttft=500ms,tpot=50ms --speed 5

How many engines there are, how many devices each has, how they are set, in what form KV is kept, and whether prompts and decodes
are apart is found by simulating the trace. The same arguments give the same answer.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from loadtest.report.objectives import slo
from loadtest.report.output import add_output_options, ready_folder, write_whole
from loadtest.simulate.cluster import ServerShape
from loadtest.simulate.options import (
    add_crowd_option,
    add_engine_options,
    add_link_options,
    add_machine_options,
    machines_of,
    numbers,
    plan_of,
)
from loadtest.simulate.shapes.named import named_model
from loadtest.simulate.specs import KV_FORMATS, Hardware, SpecError, load_costs, load_hardware
from loadtest.sizing.answer import Buyer
from loadtest.sizing.candidates import FleetCandidates
from loadtest.sizing.fleet import FleetKind, kinds_of
from loadtest.sizing.load import busiest
from loadtest.sizing.pool import TrialPool
from loadtest.sizing.trial import SizingBench
from loadtest.sizing.words import AnswerView, as_json, sections, sentences, unfitted, without_answer
from loadtest.stops import interruptible
from loadtest.workload.numbers import positive, share, whole
from loadtest.workload.options import add_request_options
from scheduler.router.policies import ROUTERS

PLAN, PAGE = "plan.json", "plan.html"
_WIDTH = 120  # columns of the tables


def main(argv: Sequence[str] | None = None) -> int:
    """Plan. Returns the exit code: 1 if nothing keeps the objectives, 2 if the arguments are unusable, 3 if it was interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    options.hardware = [part.strip() for part in options.hardware.split(",")]
    interrupted = False
    try:
        if options.output:
            ready_folder(options.output, (PLAN, PAGE), overwrite=options.overwrite)
        bench, kinds = _bench(options), _kinds(options)
        pool = TrialPool(bench, options.jobs)
        candidates = FleetCandidates(bench, options.max_step_tokens, options.max_running)
        buyer = Buyer(pool, candidates, kinds, most=options.most_devices, precision=options.precision, tell=_tell)
        try:
            with interruptible(), pool:
                buyer.answer()
        except KeyboardInterrupt:
            interrupted = True
    except (ValueError, OSError) as error:
        print(f"headrace loadtest plan: {error}", file=sys.stderr)
        return 2
    if buyer.so_far is None:
        _show_none(buyer, pool, options, interrupted=interrupted)
        return 3 if interrupted else 1
    rest = _plan_options(argparse.ArgumentParser(add_help=False, allow_abbrev=False)).parse_known_args(arguments)[1]
    named = dict(zip(_names(options), options.hardware, strict=True))
    _show(AnswerView(buyer.so_far, bench, pool.outcomes, named, rest), options)
    return 3 if interrupted else 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _names(options: argparse.Namespace) -> list[str]:
    return [load_hardware(name).name for name in options.hardware]


def _show(view: AnswerView, options: argparse.Namespace) -> None:
    if options.output:
        from loadtest.sizing.page import write_page

        for path in write_page(view, options.output, PLAN, PAGE):
            print(path, file=sys.stderr)
    if options.json:
        print(json.dumps(as_json(view), indent=2))
        return
    from rich.console import Console

    from loadtest.report.table import section_table

    print("\n".join(sentences(view)))
    console = Console(width=max(Console().width, _WIDTH))
    for section in sections(view):
        console.print()
        console.print(section_table(section))
    if said := unfitted(view):
        print(f"\n{said}.")


def _show_none(buyer: Buyer, pool: TrialPool, options: argparse.Namespace, *, interrupted: bool) -> None:
    """No set keeps the objectives, or none was found by the time somebody interrupted."""
    open_ = "the search for a set that keeps the objectives has not ended" if interrupted else ""
    content = json.dumps(without_answer(buyer.verdicts, pool.outcomes, open_), indent=2)
    if options.output:
        write_whole(options.output / PLAN, content)
        print(options.output / PLAN, file=sys.stderr)
    if options.json:
        print(content)
        return
    if interrupted:
        print(f"Interrupted: {open_}, and {len(pool.outcomes)} simulations were made.")
    else:
        print(f"No set of at most {options.most_devices} devices keeps the objectives:")
    for verdict in buyer.verdicts:
        print(f"  {verdict.kind}: {verdict.why or 'not over the whole load'}.")


def _bench(options: argparse.Namespace) -> SizingBench:
    """What is simulated. Raises ValueError."""
    if not options.slo:
        raise ValueError("the cheapest set depends on the objectives: give --slo ttft=500ms,tpot=50ms")
    if not options.attainment:
        raise ValueError("--attainment 0 is kept by any set, or none: give a share above 0, such as 99%")
    plan = plan_of(options)
    shape = ServerShape()
    server = replace(
        shape,
        max_waiting=options.max_waiting,
        block_size=options.block_size,
        kv_blocks=options.kv_blocks,
        context=options.context,
        prefix_caching=not options.no_prefix_caching,
        scheduling=options.scheduling,
    )
    return SizingBench(
        requests=plan.requests,
        stretch=busiest(plan.requests, options.stretch),
        warm_up=options.warm_up,
        cool_down=options.cool_down,
        model=named_model(options.model),
        server=server,
        router=options.router,
        objectives=options.slo,
        goal=options.attainment,
        machines=partial(machines_of, options),
        bandwidth=options.link_bandwidth,
        latency=options.link_latency,
    )


def _hardware(options: argparse.Namespace) -> list[Hardware]:
    """The devices, at the prices that were given. Raises SpecError, ValueError."""
    found = [load_hardware(name) for name in options.hardware]
    if options.costs:
        if len(found) > 1:
            raise ValueError("--costs are of one device, and --hardware names several")
        found = [found[0].with_costs(load_costs(options.costs))]
    for name, price in options.price.items():
        if name and name not in [each.name for each in found]:
            raise ValueError(f"--price names {name}, and --hardware only {', '.join(each.name for each in found)}")
        if not name and len(found) > 1:
            raise ValueError(f"--price {price:g} is of one device, and --hardware names several: write NAME={price:g}")
    found = [
        replace(each, price_per_hour=given, price_source="--price") if given is not None else each
        for each in found
        for given in [options.price.get(each.name, options.price.get(""))]
    ]
    unknown = [each.name for each in found if not each.price_per_hour]
    if unknown and len(found) > 1:
        raise ValueError(f"what {unknown[0]} costs is not known: give --price {unknown[0]}=DOLLARS_AN_HOUR")
    return found


def _kinds(options: argparse.Namespace) -> list[FleetKind]:
    """All kinds that come into question, the simplest first. Raises SpecError if the model fits on none."""
    model = named_model(options.model)
    found: list[FleetKind] = []
    refusal: SpecError | None = None
    for hardware in _hardware(options):
        try:
            found += kinds_of(
                hardware,
                model,
                options.tensor_parallel,
                options.gpu_kv,
                split=not options.mixed_only and not options.no_prefix_caching and options.keeper_gib is None,
                block_size=options.block_size,
            )
        except SpecError as error:
            refusal = error
    if not found:
        raise refusal or SpecError(f"{model.name} runs on none of these devices as it is asked for")
    return sorted(found, key=lambda kind: (kind.gpu_kv != "auto", kind.split, kind.devices))


def _prices(text: str) -> dict[str, float]:
    """`3.5`, or `h200=3.5,l40s=0.9`; the first stands under no name. Raises ArgumentTypeError."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().rpartition("=")
        if name in found or (equals and not name):
            raise argparse.ArgumentTypeError(f"{text!r} names a device twice, or none: h200=3.5,l40s=0.9")
        found[name] = positive(value)
    if "" in found and len(found) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} has a price of no device: h200=3.5,l40s=0.9")
    return found


def _names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        found = [part.strip() for part in text.split(",")]
        if wrong := [each for each in found if each not in known]:
            raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(known)}")
        return found

    return read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest plan",
        description="Find the cheapest set of devices that keeps the objectives under a trace's load.",
        epilog="What a given number of devices is best used for: headrace loadtest layouts.",
        allow_abbrev=False,
    )
    _plan_options(parser)
    server = parser.add_argument_group("server")
    add_engine_options(server)
    parser.add_argument("--slo", type=slo, default={}, metavar="ttft=500ms,tpot=50ms", help="objectives, required")
    parser.add_argument("--router", choices=ROUTERS, default="prefix-aware", help="[%(default)s]")
    add_link_options(parser)
    add_machine_options(parser)
    add_crowd_option(parser)
    add_request_options(parser)
    return parser


def _plan_options(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Those that `simulate` does not have, or has for one fleet."""
    group = parser.add_argument_group("what may be bought")
    group.add_argument(
        "--hardware",
        required=True,
        metavar="NAME[,NAME..]",
        help="devices to choose from: YAML files, or names in configs/presets/hardware",
    )
    group.add_argument(
        "--price",
        type=_prices,
        default={},
        metavar="P or NAME=P[,..]",
        help="dollars an hour of a device [that in its file]",
    )
    group.add_argument("--most-devices", type=whole, default=512, metavar="N", help="of a set [%(default)s]")
    group.add_argument(
        "--tensor-parallel",
        type=numbers,
        default=[1, 2, 4, 8],
        metavar="N[,N..]",
        help="devices that an engine may have [1,2,4,8]",
    )
    group.add_argument(
        "--gpu-kv",
        type=_names_of(KV_FORMATS),
        default=list(KV_FORMATS),
        metavar="auto,fp8",
        help="KV to try [auto,fp8]",
    )
    group.add_argument(
        "--mixed-only", action="store_true", help="leave out engines for prompts and engines for decodes"
    )
    group.add_argument(
        "--max-step-tokens", type=numbers, metavar="N[,N..]", help="step budgets to try [those that fit the device]"
    )
    group.add_argument(
        "--max-running", type=numbers, metavar="N[,N..]", help="running limits to try [those that fit the device]"
    )
    group = parser.add_argument_group("search")
    group.add_argument(
        "--attainment", type=share, default=0.99, help="share of requests that must meet --slo [%(default)g]"
    )
    group.add_argument("--precision", type=positive, default=0.1, help="of the headroom, relative [%(default)g]")
    group.add_argument(
        "--stretch",
        type=whole,
        default=2000,
        metavar="N",
        help="requests of the busiest part, with which sets are sought [%(default)s]",
    )
    group.add_argument("--jobs", type=whole, default=os.cpu_count() or 1, metavar="N", help="processes [the cores]")
    report = parser.add_argument_group("report")
    report.add_argument("--json", action="store_true", help="print JSON, with every trial")
    add_output_options(report)
    return parser
