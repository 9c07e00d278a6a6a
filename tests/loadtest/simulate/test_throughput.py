"""An offline batch in simulated time: the real scheduler, the measured costs of two CPU cores."""

import random

import pytest

from loadtest.report.records import RequestRecord
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.round_robin import RoundRobin
from scheduler.types.messages import EngineStats

BLOCK, PREFIX, OWN = 32, 32, 4  # tokens; blocks; blocks


def batch(many: int = 400, prefixes: int = 40) -> list[Planned]:
    """All at once, shuffled."""
    rng = random.Random(3)
    chosen = [index % prefixes for index in range(many)]
    rng.shuffle(chosen)
    return [
        Planned(
            index=index,
            intended=0.0,
            prompt_tokens=(PREFIX + OWN) * BLOCK,
            output_tokens=rng.randint(16, 128),
            blocks=(
                *range(prefix * 1000, prefix * 1000 + PREFIX),
                *range(10**6 + index * OWN, 10**6 + (index + 1) * OWN),
            ),
            block_tokens=BLOCK,
        )
        for index, prefix in enumerate(chosen)
    ]


def simulate(scheduling: str, kv_blocks: int) -> tuple[list[RequestRecord], EngineStats]:
    cost = CostModel(load_hardware("cpu-2core"), load_model("smollm2-135m"))
    server = ServerShape(max_step_tokens=128, kv_blocks=kv_blocks, context=2048, scheduling=scheduling)
    cluster = Cluster(cost, server, RoundRobin())
    records = cluster.run(batch())
    assert all(record.ok for record in records)
    cluster.replicas[0].scheduler.check_integrity()
    return records, next(iter(cluster.stats()))


@pytest.mark.parametrize(("kv_blocks", "gain"), [(160, 1.7), (240, 1.35)])
def test_prefixes_one_after_the_other_are_computed_once(kv_blocks, gain):
    """The pool holds 5 or 7.5 of 40 prefixes. At most nine of ten requests find 32 of their 36 blocks."""
    records, stats = simulate("throughput", kv_blocks)
    in_turn, others = simulate("priority", kv_blocks)
    assert stats.prefix_hit_tokens / stats.prefix_query_tokens > 0.99 * 0.9 * PREFIX / (PREFIX + OWN)
    assert others.prefix_hit_tokens < 0.8 * stats.prefix_hit_tokens
    assert max(r.finished or 0.0 for r in in_turn) > gain * max(r.finished or 0.0 for r in records)
