"""`headrace loadtest routing`: a trace under each routing policy, beside one replica that is as large and as fast as all together.

The one replica has every prefix where every request is: what it finds in its cache is what routing can at best keep. As large a
cache alone (`--one cache`) says that too, without time: each prompt is there as soon as it has come.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.report.records import RequestRecord
from loadtest.simulate.cluster import Cluster, Machines, ServerShape
from loadtest.simulate.content import Content
from loadtest.simulate.cost import CostModel
from loadtest.simulate.hand_over import make_resident
from loadtest.simulate.options import (
    add_crowd_option,
    add_machine_options,
    add_server_options,
    cost_of,
    machines_of,
    plan_of,
    server_of,
)
from loadtest.simulate.specs import SpecError
from loadtest.workload.arrivals import ArrivalError
from loadtest.workload.numbers import whole
from loadtest.workload.options import add_request_options
from loadtest.workload.plan import Plan
from loadtest.workload.traces.problems import TraceError
from scheduler.kv.block_pool import BlockPool
from scheduler.router.policies import ROUTERS, make_router

_TIMES = (("TTFT mean", 11), ("p50", 8), ("p99 s", 8))
_COLUMNS = (("cached", 9), ("of turns", 10), ("of one", 9), *_TIMES, ("largest", 9), ("failed", 8), ("unfit", 7))


@dataclass(frozen=True, slots=True)
class RoutingOutcome:
    """One simulated run.

    Attributes:
        name: the policy's.
        cached: share of the prompt tokens that were found in a cache.
        ttft: seconds to the first token: mean, p50 and p99; nothing of a cache alone.
        largest: prompt tokens of the replica that got the most, over the mean.
        failed, unfit: requests that were refused, and those longer than the context.
    """

    name: str
    cached: float
    ttft: tuple[float, ...] = ()
    largest: float = 1.0
    failed: int = 0
    unfit: int = 0

    @classmethod
    def of(cls, name: str, cluster: Cluster, records: Sequence[RequestRecord]) -> "RoutingOutcome":
        """The figures of a run that has ended. Raises ValueError if no request was answered."""
        done = [record for record in records if record.ok]
        if not done:
            raise ValueError("no request of the trace was answered")
        cached = sum(record.cached_tokens or 0 for record in done) / sum(record.asked_prompt for record in done)
        times = [record.ttft or 0.0 for record in done]
        prompts = [stats.prompt_tokens for stats in cluster.stats()]
        spread = (float(np.mean(times)), float(np.percentile(times, 50)), float(np.percentile(times, 99)))
        unfit = sum(not record.fits for record in records)
        failed = len(records) - len(done) - unfit
        return cls(name, cached, spread, max(prompts) / float(np.mean(prompts)), failed, unfit)


def compare(
    plan: Plan,
    cost: CostModel,
    shape: ServerShape,
    replicas: int,
    *,
    policies: Sequence[str] = ROUTERS,
    machines: Machines | None = None,
    cache_alone: bool = False,
) -> list[RoutingOutcome]:
    """The trace on one replica that has all the memory and speed, or in a cache as large as all, then under each policy."""
    blocks = shape.kv_blocks or cost.kv_blocks(shape.block_size)
    if cache_alone:
        outcomes = [in_one_cache(plan, replicas * blocks, shape.block_size)]
    else:
        large = replace(shape, kv_blocks=replicas * blocks, max_running=replicas * shape.max_running)
        fast = CostModel(cost.hardware.times(replicas), cost.model, cost.devices)
        one = Cluster(fast, large, make_router("round-robin"))
        outcomes = [RoutingOutcome.of("one", one, one.run(plan.requests))]
    for name in policies:
        cluster = Cluster(cost, shape, make_router(name), replicas, machines=machines)
        outcomes.append(RoutingOutcome.of(name, cluster, cluster.run(plan.requests)))
    return outcomes


def in_one_cache(plan: Plan, blocks: int, block_size: int) -> RoutingOutcome:
    """What a cache of so many blocks has of the prompts, each of which is there as soon as it has come."""
    pool, content = BlockPool(blocks, block_size), Content(block_size)
    found = asked = 0
    for request in plan.requests:
        text = content.text(request)
        ids, names = text.prompt, text.prompt_names
        found += block_size * len(pool.match(names[: (len(ids) - 1) // block_size], ids))
        asked += len(ids)
        make_resident(pool, names, ids)
    return RoutingOutcome("one cache", found / asked)


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate and print. Returns the exit code: 0, or 2 if the arguments are unusable."""
    options = _parser().parse_args(argv)
    try:
        shape, cost = server_of(options), cost_of(options)
        outcomes = compare(
            plan_of(options),
            cost,
            shape,
            options.replicas,
            policies=options.policies,
            machines=machines_of(options, cost),
            cache_alone=options.one == "cache",
        )
    except (ArrivalError, SpecError, TraceError, ValueError) as error:
        print(f"headrace loadtest routing: {error}", file=sys.stderr)
        return 2
    turns = {outcome.name: outcome.cached for outcome in outcomes}.get("round-robin", 0.0)
    one = outcomes[0].cached
    print(" " * 14 + "".join(f"{name:>{width}}" for name, width in _COLUMNS))
    for each in outcomes:
        bases = ((turns, 10), (one, 9))
        ratios = "".join(f"{each.cached / base:>{width}.2f}" if base else " " * width for base, width in bases)
        times = "".join(f"{seconds:>{width}.3f}" for seconds, (_, width) in zip(each.ttft, _TIMES, strict=False))
        rest = f"{times}{each.largest:>9.2f}{each.failed:>8}{each.unfit:>7}" if each.ttft else ""
        print(f"{each.name:>14}{each.cached:>9.2%}{ratios}{rest}")
    return 0


def _policies(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in ROUTERS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(ROUTERS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest routing",
        description="What each routing policy finds in caches, beside one replica as large and as fast as all together.",
    )
    parser.add_argument("--replicas", type=whole, default=4, metavar="N", help="behind the router [%(default)s]")
    parser.add_argument(
        "--policies", type=_policies, default=ROUTERS, metavar="P[,P..]", help=f"of {', '.join(ROUTERS)} [all]"
    )
    parser.add_argument(
        "--one",
        choices=("replica", "cache"),
        default="replica",
        help="what the policies are compared with: one replica as large and as fast as all, or one cache as large [%(default)s]",
    )
    add_server_options(parser)
    add_machine_options(parser)
    add_crowd_option(parser)
    add_request_options(parser)
    return parser
