"""Where no text is the beginning of another, blocks that are counted bring what named ones bring."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.simulate.cluster import Cluster, ServerShape
from loadtest.simulate.counted_blocks import ContentsMatter, CountedBlocks, nothing_shared
from loadtest.workload.plan import Planned
from scheduler.kv.block_pool import IntegrityError, OutOfBlocks
from scheduler.router.round_robin import RoundRobin
from tests.drawn import drawn
from tests.loadtest.simulate.test_cluster import cost, planned, traffic

SHAPES = (
    {},
    {"max_running": 3},
    {"max_step_tokens": 40, "max_running": 12},
    {"max_waiting": 3, "max_running": 2},
    {"kv_blocks": 40, "context": 700},
    {"scheduling": "fcfs"},
    {"scheduling": "fair"},
    {"prefix_caching": False},
)


def played(requests: list[Planned], *, fast_forward: bool, **shape: int) -> tuple[Cluster, object]:
    cluster = Cluster(cost(), ServerShape(**shape), RoundRobin(), fast_forward=fast_forward)  # type: ignore[arg-type]
    records = [asdict(record) for record in cluster.run(requests)]
    (replica,) = cluster.replicas
    assert replica.scheduler.idle and not replica.open
    replica.scheduler.check_integrity()
    return cluster, (records, [_counters(stats) for stats in cluster.stats()])


def _counters(stats: object) -> dict[str, object]:
    """Without what is only known of named blocks."""
    return {name: value for name, value in asdict(stats).items() if name not in ("blocks_cached", "blocks_free")}  # type: ignore[call-overload]


@st.composite
def texts_of_their_own(draw: st.DrawFn) -> list[Planned]:
    found, at = [], 0.0
    for index in range(draw(st.integers(1, 25))):
        at += draw(st.sampled_from((0.0, 0.0, 0.004, 0.05, 1.0)))
        priority = draw(st.sampled_from((0, 0, 0, 0, 0, 1)))
        length, answer = draw(st.integers(1, 400)), draw(st.integers(1, 90))
        found.append(planned(index, at, length, answer, priority=priority))
    return found


@settings(max_examples=drawn(40))
@given(texts_of_their_own(), st.sampled_from(SHAPES))
def test_counted_blocks_are_as_good_as_named_ones(requests, shape):
    _, plain = played(requests, fast_forward=False, **shape)
    _, counted = played(requests, fast_forward=True, **shape)
    assert counted == plain


def own(seed: int, many: int, rate: float) -> list[Planned]:
    found = [(each.intended, each.prompt_tokens, each.output_tokens) for each in traffic(seed, many, rate)]
    return [planned(index, *each) for index, each in enumerate(found)]


def test_blocks_are_counted_where_there_are_enough():
    cluster, _ = played(own(0, 30, 50.0), fast_forward=True)
    assert isinstance(cluster.replicas[0].scheduler.pool, CountedBlocks)


@pytest.mark.parametrize("seed", range(drawn(3)))
def test_where_somebody_is_preempted_blocks_are_named_and_all_begins_again(seed):
    requests, told = own(seed, 40, 200.0), list[int]()
    plain = played(requests, fast_forward=False, kv_blocks=70)[1]
    cluster, again = played(requests, fast_forward=True, kv_blocks=70)
    assert again == plain
    assert not isinstance(cluster.replicas[0].scheduler.pool, CountedBlocks)
    assert next(cluster.stats()).preemptions > 0
    Cluster(cost(), ServerShape(kv_blocks=70), RoundRobin()).run(requests, told.append)
    assert told[-40:] == list(range(1, 41)) and len(told) > 40


@pytest.mark.parametrize("more", [{"session": "a"}, {"blocks": (1, 2), "block_tokens": 64}, {"prompt": "text"}])
def test_texts_that_may_be_shared_are_named(more):
    requests = [*own(0, 3, 5.0), replace(planned(3, 9.0, 100, 9), **more)]
    assert nothing_shared(requests[:3]) and not nothing_shared(requests)
    cluster, _ = played(requests, fast_forward=True)
    assert not isinstance(cluster.replicas[0].scheduler.pool, CountedBlocks)


def test_several_replicas_are_looked_at_and_have_named_blocks():
    cluster = Cluster(cost(), ServerShape(), RoundRobin(), 2)
    cluster.run(own(0, 9, 5.0))
    assert not any(isinstance(each.scheduler.pool, CountedBlocks) for each in cluster.replicas)


def test_the_books_of_counted_blocks():
    pool = CountedBlocks(8, 4)
    table = pool.allocate(5)
    assert (len(table), pool.available, pool.used, pool.free, pool.cached) == (5, 3, 5, 3, 0)
    pool.check_integrity([table])
    with pytest.raises(OutOfBlocks, match="4 blocks asked for, 3 available"):
        pool.allocate(4)
    with pytest.raises(IntegrityError, match="5 blocks count as used, tables hold 2"):
        pool.check_integrity([table[:2]])
    with pytest.raises(ContentsMatter):
        pool.shared(0)
    pool.release(table)
    assert pool.available == 8
    pool.check_integrity([])
