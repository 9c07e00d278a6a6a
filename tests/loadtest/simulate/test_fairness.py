"""A light tenant beside an aggressor, in simulated time: the real scheduler, the measured costs of two CPU cores."""

import random

import numpy as np
import pytest

from loadtest.report.records import RequestRecord
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.round_robin import RoundRobin
from scheduler.types.messages import EngineStats

# In each of them something else runs short: the step's tokens, slots, blocks.
SHAPES = {
    "tokens": {"kv_blocks": 700, "context": 4096},
    "slots": {"kv_blocks": 700, "context": 4096, "max_running": 8},
    "blocks": {"kv_blocks": 100, "context": 2048},
}
Sent = tuple[float, int, int, str]


def light(many: int = 50, rate: float = 0.8) -> list[Sent]:
    rng, at, sent = random.Random(1), 0.0, []
    for _ in range(many):
        at += rng.expovariate(rate)
        sent.append((at, rng.randint(100, 900), rng.randint(16, 96), "light"))
    return sent


def aggressor(many: int = 250) -> list[Sent]:
    """All at once: more than 50 are open for as long as the light tenant sends."""
    rng = random.Random(2)
    return [(0.0, rng.randint(200, 800), rng.randint(64, 192), "aggressor") for _ in range(many)]


def simulate(sent: list[Sent], scheduling: str, **shape: int) -> tuple[list[RequestRecord], EngineStats]:
    planned = [
        Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=output, klass=klass)
        for index, (at, prompt, output, klass) in enumerate(sorted(sent))
    ]
    cost = CostModel(load_hardware("cpu-2core"), load_model("smollm2-135m"))
    server = ServerShape(max_step_tokens=128, scheduling=scheduling, **shape)  # type: ignore[arg-type]
    cluster = Cluster(cost, server, RoundRobin())
    records = cluster.run(planned)
    assert all(record.ok for record in records)
    cluster.replicas[0].scheduler.check_integrity()
    return records, next(iter(cluster.stats()))


def p99(records: list[RequestRecord]) -> float:
    return float(np.percentile([record.ttft for record in records if record.klass == "light"], 99))


def ended(records: list[RequestRecord], klass: str) -> float:
    return max(record.finished or 0.0 for record in records if record.klass == klass)


@pytest.mark.parametrize("short_of", SHAPES)
def test_an_aggressor_does_not_double_a_light_tenants_wait(short_of):
    shape = SHAPES[short_of]
    alone, _ = simulate(light(), "fair", **shape)
    beside, stats = simulate(light() + aggressor(), "fair", **shape)
    heavy = [record for record in beside if record.klass == "aggressor"]
    still_open = sum((record.finished or 0.0) > ended(beside, "light") for record in heavy)
    assert still_open >= 50
    assert p99(beside) <= 2 * p99(alone)
    assert stats.recomputed_tokens <= 0.2 * (stats.prompt_tokens + stats.generation_tokens)


def test_first_come_first_served_lets_it_wait_for_all():
    shape = SHAPES["slots"]
    alone, _ = simulate(light(), "fcfs", **shape)
    served_in_turn, _ = simulate(light() + aggressor(), "fcfs", **shape)
    fair, _ = simulate(light() + aggressor(), "fair", **shape)
    assert p99(served_in_turn) > 50 * p99(alone)
    total = max(ended(fair, "light"), ended(fair, "aggressor"))
    total_in_turn = max(ended(served_in_turn, "light"), ended(served_in_turn, "aggressor"))
    assert total < 1.03 * total_in_turn, "work-conserving: nothing is lost but what is computed again"
