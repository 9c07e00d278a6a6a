"""`headrace loadtest routing`: a trace under each routing policy, beside one replica that is as large and as fast as all together.

The one replica has every prefix where every request is: what it finds in its cache is what routing can at best keep.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loadtest.report.records import RequestRecord
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.options import add_server_options, cost_of, plan_of, server_of
from loadtest.simulate.specs import SpecError
from loadtest.workload.arrivals import ArrivalError
from loadtest.workload.numbers import whole
from loadtest.workload.options import add_request_options
from loadtest.workload.plan import Plan
from loadtest.workload.traces.problems import TraceError
from scheduler.router.policies import ROUTERS, make_router

_TIMES = (("TTFT mean", 11), ("p50", 8), ("p99 s", 8))
_COLUMNS = (("cached", 9), ("of turns", 10), ("of one", 9), *_TIMES, ("largest", 9), ("failed", 8), ("unfit", 7))


@dataclass(frozen=True, slots=True)
class RoutingOutcome:
    """One simulated run.

    Attributes:
        name: the policy's.
        cached: share of the prompt tokens that were found in a cache.
        ttft: seconds to the first token: mean, p50 and p99.
        largest: prompt tokens of the replica that got the most, over the mean.
        failed, unfit: requests that were refused, and those longer than the context.
    """

    name: str
    cached: float
    ttft: tuple[float, float, float]
    largest: float
    failed: int
    unfit: int

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


def compare(plan: Plan, cost: CostModel, shape: ServerShape, replicas: int) -> list[RoutingOutcome]:
    """The trace on one replica that has all the memory and speed, then under each policy."""
    blocks = shape.kv_blocks or cost.kv_blocks(shape.block_size)
    large = replace(shape, kv_blocks=replicas * blocks, max_running=replicas * shape.max_running)
    fast = CostModel(cost.hardware.times(replicas), cost.model, cost.devices)
    one = Cluster(fast, large, make_router("round-robin"))
    outcomes = [RoutingOutcome.of("one", one, one.run(plan.requests))]
    for name in ROUTERS:
        cluster = Cluster(cost, shape, make_router(name), replicas)
        outcomes.append(RoutingOutcome.of(name, cluster, cluster.run(plan.requests)))
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Simulate and print. Returns the exit code: 0, or 2 if the arguments are unusable."""
    options = _parser().parse_args(argv)
    try:
        shape = server_of(options)
        outcomes = compare(plan_of(options), cost_of(options), shape, options.replicas)
    except (ArrivalError, SpecError, TraceError, ValueError) as error:
        print(f"headrace loadtest routing: {error}", file=sys.stderr)
        return 2
    by_name = {outcome.name: outcome for outcome in outcomes}
    turns, one = by_name["round-robin"].cached, by_name["one"].cached
    print(" " * 14 + "".join(f"{name:>{width}}" for name, width in _COLUMNS))
    for each in outcomes:
        shares = (each.cached / base if base else 0.0 for base in (turns, one))
        ratios = "{:>10.2f}{:>9.2f}".format(*shares)
        times = "".join(f"{seconds:>{width}.3f}" for seconds, width in zip(each.ttft, (11, 8, 8), strict=True))
        print(f"{each.name:>14}{each.cached:>9.2%}{ratios}{times}{each.largest:>9.2f}{each.failed:>8}{each.unfit:>7}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headrace loadtest routing",
        description="What each routing policy finds in caches, beside one replica as large and as fast as all together.",
    )
    parser.add_argument("--replicas", type=whole, default=4, metavar="N", help="behind the router [%(default)s]")
    add_server_options(parser)
    add_request_options(parser)
    return parser
