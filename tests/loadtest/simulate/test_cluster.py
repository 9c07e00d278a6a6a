"""The real scheduler in simulated time: skipped stretches change nothing, sharing is the trace's, times are the cost model's."""

import random
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.report.records import ErrorClass, RequestRecord
from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.cost import CostModel, Work
from loadtest.simulate.replica import Log
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.workload.plan import Planned
from scheduler.router.least_work import LeastWork
from scheduler.router.prefix_aware import PrefixAware
from scheduler.router.round_robin import RoundRobin
from scheduler.scheduler import Scheduler
from tests.drawn import drawn


def cost() -> CostModel:
    return CostModel(load_hardware("h200"), load_model("qwen3-0.6b"))


def planned(index: int, at: float, prompt: int, output: int, **more: object) -> Planned:
    return Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=output, **more)  # type: ignore[arg-type]


def traffic(seed: int, many: int, rate: float) -> list[Planned]:
    rng = random.Random(seed)
    at, found = 0.0, []
    for index in range(many):
        at += rng.expovariate(rate)
        session = f"s{rng.randrange(5)}" if rng.random() < 0.5 else None
        found.append(planned(index, at, rng.randint(1, 900), rng.randint(1, 120), session=session))
    return found


def simulate(
    requests: list[Planned], *, replicas: int = 1, fast_forward: bool = True, log: Log | None = None, **shape: int
):
    cluster = Cluster(cost(), ServerShape(**shape), RoundRobin(), replicas, fast_forward=fast_forward, log=log)  # type: ignore[arg-type]
    records = cluster.run(requests)
    for replica in cluster.replicas:
        assert replica.scheduler.idle and not replica.open
        replica.scheduler.check_integrity()
    return records, list(cluster.stats())


@pytest.mark.parametrize("seed", range(drawn(3)))
@pytest.mark.parametrize("shape", [{}, {"max_running": 4}, {"kv_blocks": 70}, {"max_step_tokens": 48}])
def test_fast_forward_changes_nothing(seed, shape):
    requests = traffic(seed, 40, rate=20.0 * (seed + 1))
    plain, skipped = Log(), Log()
    records, stats = simulate(requests, replicas=2, fast_forward=False, log=plain, **shape)
    again, stats_again = simulate(requests, replicas=2, log=skipped, **shape)
    assert [asdict(record) for record in again] == [asdict(record) for record in records]
    assert stats_again == stats
    assert sorted(skipped) == sorted(plain)


@st.composite
def loads(draw: st.DrawFn) -> list[Planned]:
    """Bursts and quiet times; texts of sessions, of parts, and of their own; classes that come first."""
    found, at = [], 0.0
    for index in range(draw(st.integers(1, 25))):
        at += draw(st.sampled_from((0.0, 0.0, 0.004, 0.05, 1.0)))
        more: dict[str, object] = {"priority": draw(st.sampled_from((0, 0, 0, 1)))}
        length = draw(st.integers(1, 400))
        match draw(st.sampled_from(("own", "session", "blocks"))):
            case "session":
                more["session"] = draw(st.sampled_from("ab"))
            case "blocks":
                many = draw(st.integers(1, 9))
                length = 48 * many - draw(st.integers(0, 40))
                more |= {"blocks": tuple(draw(st.integers(0, 1)) for _ in range(many)), "block_tokens": 48}
        found.append(planned(index, at, length, draw(st.integers(1, 90)), **more))
    return found


@settings(max_examples=drawn(25))
@given(
    loads(),
    st.integers(1, 2),
    st.sampled_from(
        (
            {},
            {"max_running": 3},
            {"kv_blocks": 40, "context": 700},
            {"max_step_tokens": 40, "max_running": 12},
            {"max_waiting": 3, "max_running": 2},
        )
    ),
)
def test_any_load_is_played_as_step_by_step(requests, replicas, shape):
    records, stats = simulate(requests, replicas=replicas, fast_forward=False, **shape)
    again, stats_again = simulate(requests, replicas=replicas, **shape)
    assert [asdict(record) for record in again] == [asdict(record) for record in records]
    assert stats_again == stats


def test_stretches_are_skipped(monkeypatch):
    calls = []
    skip = Scheduler.fast_forward
    monkeypatch.setattr(Scheduler, "fast_forward", lambda *a: calls.append(a[2]) or skip(*a))
    Cluster(cost(), ServerShape(), RoundRobin()).run([planned(0, 0.0, 10, 500)])
    assert sum(calls) > 400 and len(calls) < 30


def test_preemption_happens_where_blocks_are_few():
    _, (stats,) = simulate(traffic(1, 40, rate=200.0), kv_blocks=70)
    assert stats.preemptions > 0 and stats.recomputed_tokens > 0


def test_alone_a_request_takes_what_its_steps_take():
    log: Log = []
    (record,), _ = simulate([planned(0, 3.0, 600, 3)], log=log)
    model = cost()
    first = model.seconds(Work(512, 1, 0, 0, 512, 512 * 513 // 2))
    second = model.seconds(Work(88, 1, 1, 0, 600, 88 * 512 + 88 * 89 // 2))
    begin, delivery = 3.0 + model.costs.request, model.costs.delivery
    assert record.ttft == pytest.approx(begin - 3.0 + first + second + delivery)
    assert record.gaps == pytest.approx([model.seconds(Work(1, 1, 1, keys)) for keys in (601, 602)])
    assert record.ok and record.finish_reason == "length" and record.output_tokens == 3
    assert record.timings is not None
    assert record.timings["prefill_ms"] == pytest.approx(1e3 * (first + second))
    assert [end - begin for begin, end, _ in log] == pytest.approx([first, second, *record.gaps])


def test_blocks_of_a_trace_are_shared_as_it_says():
    """Mooncake's form: parts of 64 tokens; the second prompt has two whole parts of the first, the third has none."""
    requests = [
        planned(0, 0.0, 200, 2, blocks=(1, 2, 3, 4), block_tokens=64),
        planned(1, 1.0, 180, 2, blocks=(1, 2, 9), block_tokens=64),
        planned(2, 2.0, 180, 2, blocks=(2, 1, 9), block_tokens=64),
    ]
    records, _ = simulate(requests)
    assert [record.cached_tokens for record in records] == [0, 128, 0]


def test_a_session_extends_its_own_prompts_and_nobody_elses():
    requests = [planned(index, float(index), 100 + 64 * index, 40, session="ab"[index == 2]) for index in range(4)]
    records, _ = simulate(requests)
    assert [record.cached_tokens for record in records] == [0, 96, 0, 160]


def test_texts_count_by_characters_and_equal_ones_are_shared():
    requests = [
        Planned(index=i, intended=float(i), prompt_tokens=0, output_tokens=2, prompt="x" * 400) for i in range(2)
    ]
    records, _ = simulate(requests)
    assert [(record.asked_prompt, record.cached_tokens) for record in records] == [(100, 0), (100, 96)]


def test_what_a_server_would_refuse_is_refused():
    requests = [planned(0, 0.0, 50_000, 2), *(planned(1 + index, 0.0, 500, 50) for index in range(6))]
    records, _ = simulate(requests, max_running=2, max_waiting=3)
    assert [record.status for record in records] == [None, 200, 200, 200, 200, 429, 429]
    assert records[0].error is ErrorClass.UNFIT and "50000" in (records[0].detail or "")


def spread_over(records: list[RequestRecord], cluster: Cluster) -> list[int]:
    return [stats.prompt_tokens for stats in cluster.stats()]


def test_least_work_goes_round_a_busy_replica():
    cluster = Cluster(cost(), ServerShape(), LeastWork(), 2)
    requests = [planned(0, 0.0, 10, 400), planned(1, 0.1, 11, 1), planned(2, 0.2, 12, 1), planned(3, 0.3, 13, 1)]
    assert spread_over(cluster.run(requests), cluster) == [10, 11 + 12 + 13]


def test_prefix_aware_keeps_a_conversation_together():
    def cached(router: object, gap: float) -> float:
        requests = [
            planned(4 * turn + user, (4 * turn + user) * gap, 256 * (turn + 1), 8, session=str((user + turn) % 4))
            for turn in range(4)
            for user in range(4)
        ]
        cluster = Cluster(cost(), ServerShape(), router, 4)  # type: ignore[arg-type]
        return sum(record.cached_tokens or 0 for record in cluster.run(requests))

    assert cached(PrefixAware(), 0.2) == 4 * 256 * (1 + 2 + 3)
    assert cached(RoundRobin(), 0.2) == 0


def test_a_traces_priorities_are_the_schedulers():
    requests = [planned(0, 0.0, 100, 500), planned(1, 0.1, 100, 5), planned(2, 0.2, 100, 5, priority=-1)]
    records, _ = simulate(requests, max_running=1, scheduling="priority")
    assert records[2].ttft is not None and records[1].ttft is not None
    assert records[2].tokens[0][0] < records[1].tokens[0][0]
