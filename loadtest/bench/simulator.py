"""How many requests a second of one core the simulator plays, where more come than a replica can serve.

    python -m loadtest.bench.simulator azure_llm_2023_conv_18.15-18.45.csv --speed 5

One replica, an H200 with Llama 3 8B, with the defaults, with more sequences, and with more tokens a step. Prints for each the
requests per second of processor time (the best of the rounds), its steps, and a digest of every record: two versions that print
the same one have decided the same. Compare only what ran side by side.
"""

import argparse
import hashlib
import platform
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loadtest.report.records import RequestRecord
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.numbers import positive, whole
from loadtest.workload.plan import LoadShape, Plan, make_plan
from loadtest.workload.traces.problems import TraceError
from loadtest.workload.traces.read import read_trace
from scheduler.router.round_robin import RoundRobin

SHAPES = {
    "defaults": ServerShape(),
    "256 sequences": ServerShape(max_running=256),
    "256 sequences, 2,048 tokens": ServerShape(max_running=256, max_step_tokens=2048),
}


@dataclass(frozen=True, slots=True)
class PlayedTrace:
    """A trace under one setting.

    Attributes:
        rate: requests per second of processor time.
        refused: requests that found the queue full.
        steps: that were simulated.
        digest: of all records.
    """

    rate: float
    refused: int
    steps: int
    digest: str


def play(plan: Plan, shape: ServerShape, rounds: int = 1) -> PlayedTrace:
    """Simulate the plan on one replica, as often as that; the best counts."""
    cost = CostModel(load_hardware("h200"), load_model("llama-3-8b"))
    seconds = []
    for _ in range(rounds):
        cluster = Cluster(cost, shape, RoundRobin())
        began = time.process_time()
        records = cluster.run(plan.requests)
        seconds.append(time.process_time() - began)
    refused = sum(record.error is not None for record in records)
    steps = sum(stats.steps for stats in cluster.stats())
    return PlayedTrace(len(records) / min(seconds), refused, steps, digest(records))


def digest(records: Iterable[RequestRecord]) -> str:
    """Of what became of each request, and when each of its tokens came."""
    found = hashlib.sha256()
    for each in records:
        figures = (
            each.index,
            each.finished,
            each.status,
            each.prompt_tokens,
            each.cached_tokens,
            each.error,
            each.timings,
        )
        found.update(repr((figures, list(each.tokens))).encode())
    return found.hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each setting. Returns the exit code: 2 if the trace cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.simulator", description="The simulator's own speed."
    )
    parser.add_argument("trace", help="a file")
    parser.add_argument(
        "--speed", type=positive, default=5.0, metavar="X", help="times faster than the trace [%(default)g]"
    )
    parser.add_argument("--limit", type=whole, metavar="N", help="requests [all]")
    parser.add_argument("--rounds", type=whole, default=1, metavar="N", help="of each setting [%(default)s]")
    options = parser.parse_args(argv)
    try:
        plan = make_plan(read_trace(options.trace), LoadShape(speed=options.speed, limit=options.limit))
    except (TraceError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"{len(plan.requests)} requests, Python {platform.python_version()}")
    for name, shape in SHAPES.items():
        each = play(plan, shape, options.rounds)
        print(
            f"{name}: {each.rate:,.0f} requests/s, {each.refused} refused, {each.steps} steps, digest {each.digest}",
            flush=True,
        )
    print(f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
