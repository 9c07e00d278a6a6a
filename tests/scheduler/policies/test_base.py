"""Who pushes out whom: a higher class a lower one, where it lacks a slot or blocks, never in vain, and never forever."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drawn import drawn
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB


def prompt(length, seed=0):
    return [(seed * 31 + i * 7) % (VOCAB - 10) + 10 for i in range(length)]


def running(engine):
    return set(engine.scheduler._table.running)


def fill(engine, names, length=6, **more):
    for number, name in enumerate(names):
        engine.add(name, prompt(length, number + 1), max_tokens=24, ignore_eos=True, **more)
    for _ in range(len(names) + 2):
        engine.tick()
    assert running(engine) == set(names)


@pytest.mark.parametrize("scheduling", ["priority", "fair"])
def test_a_higher_class_takes_a_slot(scheduling):
    engine = Engine(blocks=64, max_running=2, scheduling=scheduling)
    fill(engine, ["a", "b"])
    engine.add("urgent", prompt(5, 9), max_tokens=4, priority=-1)
    engine.tick()
    engine.tick()
    assert "urgent" in running(engine) and len(running(engine)) == 2
    engine.drain()
    engine.check_outputs()
    assert sum(end.times.preemptions for end in engine.ends.values()) == 1
    assert next(iter(engine.ends)) == "urgent"


def test_a_higher_class_takes_blocks_from_who_loses_least():
    engine = Engine(blocks=12, max_step_tokens=32, decode_watermark=0.0)
    engine.add("long", prompt(20, 1), max_tokens=6, ignore_eos=True)
    engine.add("short", prompt(9, 2), max_tokens=6, ignore_eos=True)
    for _ in range(3):
        engine.tick()
    engine.add("urgent", prompt(14, 9), max_tokens=4, priority=-1)
    engine.tick()
    assert running(engine) == {"long", "urgent"}
    engine.drain()
    engine.check_outputs()
    assert {name: end.times.preemptions for name, end in engine.ends.items()} == {"urgent": 0, "short": 1, "long": 0}


def test_a_small_victim_is_spared_where_a_larger_one_goes_anyway():
    engine = Engine(blocks=12, max_step_tokens=32, decode_watermark=0.0)
    engine.add("small", prompt(4, 1), max_tokens=8, ignore_eos=True)
    engine.add("large", prompt(24, 2), max_tokens=8, ignore_eos=True)
    for _ in range(3):
        engine.tick()
    engine.add("urgent", prompt(28, 9), max_tokens=4, priority=-1)
    engine.tick()
    assert running(engine) == {"small", "urgent"}
    engine.drain()
    engine.check_outputs()


def test_nobody_gives_way_in_vain():
    """The lower class holds too little to make room for the newcomer."""
    engine = Engine(blocks=12, max_step_tokens=32, decode_watermark=0.0)
    engine.add("peer", prompt(24, 1), max_tokens=8, ignore_eos=True, priority=-1)
    engine.add("low", prompt(9, 2), max_tokens=2, ignore_eos=True)
    for _ in range(2):
        engine.tick()
    engine.add("urgent", prompt(28, 9), max_tokens=4, priority=-1)
    engine.tick()
    assert "low" in running(engine) or "low" in engine.ends
    engine.drain()
    assert engine.ends["low"].times.preemptions == 0
    engine.check_outputs()


@pytest.mark.parametrize("scheduling", ["fcfs", "priority"])
def test_equals_never_push_each_other_out(scheduling):
    engine = Engine(blocks=64, max_running=2, scheduling=scheduling)
    fill(engine, ["a", "b"])
    for i in range(6):
        engine.add(f"r{i}", prompt(3, i + 5), max_tokens=2)
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.snapshot().preemptions == 0


def test_a_request_is_pushed_out_a_bounded_number_of_times():
    """A stream of urgent requests: the others come to an end beside it."""
    engine = Engine(blocks=16, max_step_tokens=16, max_running=2, max_preemptions=2)
    engine.add("patient", prompt(8, 1), max_tokens=30, ignore_eos=True, priority=3)
    for i in range(20):
        engine.tick()
        engine.tick()
        for name in "uv":
            engine.add(f"{name}{i}", prompt(6, i + ord(name)), max_tokens=3, ignore_eos=True, priority=0)
        for _ in range(6):
            engine.tick()
    engine.drain()
    engine.check_outputs()
    assert engine.ends["patient"].times.preemptions == 2
    assert list(engine.ends).index("patient") < 20, "protected, it ends long before the stream does"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scheduling", ["priority", "fair"])
def test_a_pool_for_one_and_a_half_requests_drains_with_bounded_recomputation(scheduling, seed):
    """Classes and tenants that push each other out: what is thrown away stays below half of what is computed once."""
    rng = random.Random(seed)
    engine = Engine(blocks=12, max_step_tokens=32, decode_watermark=0.0, context=32, scheduling=scheduling)
    total = 0
    for i in range(24):
        engine.add(
            f"r{i}", prompt(8, i), max_tokens=24, ignore_eos=True, priority=rng.randrange(3), tenant=rng.choice("ab")
        )
        total += 31
        for _ in range(rng.randrange(12)):
            engine.tick()
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.snapshot().preemptions > 0
    assert engine.scheduler.snapshot().recomputed_tokens <= total / 2


@settings(max_examples=drawn(40))
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2), st.integers(0, 6)), min_size=2, max_size=14
    ),
    st.integers(1, 4),
    st.sampled_from(["priority", "fair"]),
)
def test_an_urgent_request_waits_for_no_lower_class(requests, slots, scheduling):
    """Whoever waits while a lower, unprotected class runs could not be let in even by all of it giving way."""
    engine = Engine(blocks=14, max_running=slots, max_step_tokens=64, scheduling=scheduling, context=40)

    def check(step):
        first = engine.scheduler._table.waiting.first()
        if first is None or engine.scheduler._cache.awaits_pending(first) or engine.planned is None:
            return
        lower = [
            r for r in engine.scheduler._table.running.values() if r.priority > first.priority and r.preemptions < 3
        ]
        if lower and first.arrival in planned_over:
            lacks = engine.scheduler._prefills._admission.lacks(
                first, lower, alone=len(lower) == len(engine.scheduler._table.running)
            )
            assert lacks > 0
        planned_over.clear()
        planned_over.update(r.arrival for r in engine.scheduler._table.waiting)

    planned_over = set[int]()
    engine.after_step = check
    for number, (length, output, priority, ticks) in enumerate(requests):
        engine.add(f"r{number}", prompt(length, number), max_tokens=output, ignore_eos=True, priority=priority)
        for _ in range(ticks):
            engine.tick()
    engine.drain()
    engine.check_outputs()
