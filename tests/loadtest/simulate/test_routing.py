"""Several replicas behind a router, in simulated time: prefixes are found again, a hot one melts nobody, deadlines are kept."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from loadtest.report.records import RequestRecord
from loadtest.routing import compare
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.deadlines import DeadlineGate
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Plan, Planned
from scheduler.router.deadlines import Deadline, DeadlineFor, Outcome
from scheduler.router.policies import make_router

SHAPE = ServerShape(kv_blocks=400, max_step_tokens=256, max_waiting=100_000)


@pytest.fixture(scope="module")
def cost() -> CostModel:
    return CostModel(load_hardware("cpu-2core"), load_model("smollm2-135m"))


def drawn(
    seed: int, many: int, rate: float, blocks_of: Callable[[random.Random, int], tuple[int, ...]], output: int
) -> list[Planned]:
    rng, at, found = random.Random(seed), 0.0, []
    for index in range(many):
        at += rng.expovariate(rate)
        blocks = blocks_of(rng, index)
        found.append(
            Planned(
                index=index,
                intended=at,
                prompt_tokens=32 * len(blocks),
                output_tokens=rng.randint(1, output),
                blocks=blocks,
                block_tokens=32,
            )
        )
    return found


def conversations(rng: random.Random, index: int) -> tuple[int, ...]:
    """The next turn of one of 60 conversations."""
    user = rng.randrange(60)
    return tuple(1000 * (user + 1) + place for place in range(6 + index // 20))


def hot(rng: random.Random, index: int) -> tuple[int, ...]:
    """One long prefix that all have, and a question of their own."""
    return (*range(64), 1000 + index)


def alone(rng: random.Random, index: int) -> tuple[int, ...]:
    return tuple(1000 * (index + 1) + place for place in range(rng.randint(2, 30)))


def test_more_is_found_again_than_in_turns_and_nearly_as_much_as_in_one(cost):
    plan = Plan(requests=drawn(1, 200, 2.0, conversations, 8), described={}, problems=[])
    found = {outcome.name: outcome for outcome in compare(plan, cost, SHAPE, 4)}
    assert found["prefix-aware"].cached >= 1.5 * found["round-robin"].cached
    assert found["prefix-aware"].cached >= 0.9 * found["one"].cached
    assert found["prefix-aware"].ttft[0] < found["round-robin"].ttft[0]


def test_one_cache_alone_finds_what_one_replica_finds(cost):
    plan = Plan(requests=drawn(1, 200, 2.0, conversations, 8), described={}, problems=[])
    one = compare(plan, cost, SHAPE, 4, policies=[])[0]
    cache = compare(plan, cost, SHAPE, 4, policies=[], cache_alone=True)[0]
    assert cache.name == "one cache" and not cache.ttft
    assert cache.cached == pytest.approx(one.cached, rel=0.05)


def test_a_prefix_that_all_ask_for_is_computed_by_several(cost):
    requests = drawn(2, 120, 24.0, hot, 60)
    ends: dict[int, float] = {}
    for replicas in (1, 4):
        cluster = Cluster(cost, SHAPE, make_router("prefix-aware"), replicas)
        ends[replicas] = sum(record.e2e or 0.0 for record in cluster.run(requests))
        prompts = [stats.prompt_tokens for stats in cluster.stats()]
        assert min(prompts) > 0.1 * sum(prompts), "each has its part"
    assert ends[4] < 0.3 * ends[1], "one alone melts"


def work_done(records: list[RequestRecord], until: float) -> int:
    """Tokens of the answers that were complete by then."""
    done = (record for record in records if record.finished is not None and record.finished <= until)
    return sum(record.asked_prompt - (record.cached_tokens or 0) + record.asked_output for record in done)


@pytest.mark.parametrize(
    "deadline", [Deadline(5.0), Deadline(12.0, DeadlineFor.END)], ids=lambda each: each.until.value
)
def test_promises_are_kept_and_nobody_idles_for_them(cost, deadline):
    outcomes, done, possible, late = Counter[Outcome](), 0, 0, 0
    for seed in (3, 5, 6):
        requests = drawn(seed, 260, 14.0, alone, 40)  # more than two replicas can do
        gate = DeadlineGate(deadline)
        records = Cluster(cost, SHAPE, make_router("prefix-aware"), 2, deadlines=gate).run(requests)
        best = Cluster(cost, SHAPE, make_router("prefix-aware"), 2).run(requests)
        outcomes += gate.outcomes
        until = requests[-1].intended
        done, possible = done + work_done(records, until), possible + work_done(best, until)
        times = [record.ttft if deadline.until is DeadlineFor.FIRST_TOKEN else record.e2e for record in best]
        late += sum((time or 0.0) > deadline.seconds for time in times)
        refusals = [record for record in records if record.status == 429]
        assert len(refusals) == gate.outcomes[Outcome.REFUSED] and sum(gate.outcomes.values()) == len(requests)
        assert all("expected after" in (record.detail or "") for record in refusals)
    kept, broken, refused = (outcomes[each] for each in (Outcome.KEPT, Outcome.BROKEN, Outcome.REFUSED))
    assert refused > 60 and kept >= 0.97 * (kept + broken), outcomes
    assert done >= 0.95 * possible
    assert late > refused / 2, "best effort would have failed them late"


def test_where_there_is_room_nobody_is_refused(cost):
    requests = drawn(4, 60, 1.0, alone, 20)
    gate = DeadlineGate(Deadline(20.0, DeadlineFor.END))
    Cluster(cost, replace(SHAPE, kv_blocks=2000), make_router("prefix-aware"), 2, deadlines=gate).run(requests)
    assert gate.outcomes == {Outcome.KEPT: 60}
    assert str(gate) == "deadlines: 0 refused at once, 60 promised, 100.00% of these kept"
