"""Requests with a resident prefix go together, and nobody is passed over forever."""

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.policies.waiting_queue import MAX_PASSES, WaitingQueue
from scheduler.types.messages import RequestTimes
from scheduler.types.request import Request
from scheduler.types.sampling_params import SamplingParams
from tests.drawn import drawn
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB


def request(arrival, priority=0):
    return Request(
        request_id=str(arrival),
        prompt_ids=[1],
        sampling=SamplingParams(max_tokens=1),
        priority=priority,
        arrival=arrival,
        root=b"",
        times=RequestTimes(queued=0.0, scheduled=0.0),
    )


@settings(max_examples=drawn(100))
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=10, max_size=120),
    st.integers(0, 32),
    st.randoms(use_true_random=False),
)
def test_nobody_is_passed_more_often_than_the_bound(arrivals, lookahead, rng):
    line = WaitingQueue(lambda _: "", lookahead)
    came_after: dict[int, int] = {}  # of those that wait: later arrivals of the same class that came in before them
    arrival = 0
    for fresh, priority in arrivals:
        for _ in range(fresh):
            line.add(request(arrival, priority))
            came_after[arrival] = 0
            arrival += 1
        waiting = list(line)
        first = next(line.admission_order("", lambda _: rng.random() < 0.5), None)
        if first is None:
            continue
        assert first.priority == min(r.priority for r in waiting), "no class is passed"
        line.take(first)
        for other in line:
            came_after[other.arrival] += other.arrival < first.arrival and other.priority == first.priority
            assert came_after[other.arrival] <= MAX_PASSES
        assert lookahead > 0 or not any(came_after[r.arrival] for r in line)


def test_each_is_tried_once():
    line = WaitingQueue(lambda _: "", 3)
    for arrival in range(6):
        line.add(request(arrival, priority=arrival // 4))
    tried = [r.arrival for r in line.admission_order("", lambda r: r.arrival in (2, 3))]
    assert tried == [2, 0, 1, 3, 4, 5], "the third is within the look ahead, the fourth is not"


def groups(engine, many, each):
    """Arrivals that take turns among long prefixes, each with a tail of its own."""
    heads = [[(group * 7 + i) % (VOCAB - 10) + 10 for i in range(24)] for group in range(many)]
    for turn in range(each):
        for group, head in enumerate(heads):
            tail = [(turn * 11 + group * 3 + i) % VOCAB for i in range(5)]
            engine.add(f"{group}.{turn}", head + tail, max_tokens=6, ignore_eos=True)


def test_prefixes_go_together_where_the_pool_forgets_them_otherwise():
    def computed(lookahead):
        engine = Engine(blocks=22, max_running=2, max_step_tokens=64, prefix_lookahead=lookahead)
        groups(engine, many=4, each=6)
        engine.drain()
        engine.check_outputs()
        stats = engine.scheduler.snapshot()
        return stats.prefix_query_tokens - stats.prefix_hit_tokens

    alone, together = computed(0), computed(32)
    assert together < 0.6 * alone, (together, alone)


def test_the_first_comes_in_though_warm_ones_keep_coming():
    engine = Engine(blocks=40, max_running=1, max_step_tokens=64)
    warm = [10 + i % 30 for i in range(24)]
    engine.add("first", [*warm, 1], max_tokens=2, ignore_eos=True)
    engine.add("cold", [49 - i % 20 for i in range(24)], max_tokens=2, ignore_eos=True)
    for i in range(MAX_PASSES + 6):
        engine.add(f"w{i}", [*warm, 2, i], max_tokens=2, ignore_eos=True)
    engine.drain()
    engine.check_outputs()
    place = list(engine.ends).index("cold")
    assert place == 1 + MAX_PASSES
