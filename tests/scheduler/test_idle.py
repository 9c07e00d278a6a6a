"""Idle requests run on what nobody else needs, and nobody else waits for them."""

import pytest

from scheduler.types.messages import IDLE_PRIORITY
from tests.scheduler.sim import Engine
from tests.scheduler.test_scheduler import chunks, prompt

POLICIES = ("fcfs", "priority", "fair", "throughput")


def idle(engine, name, length=4, **sampling):
    engine.add(name, prompt(length, len(name) + ord(name[-1])), priority=IDLE_PRIORITY, ignore_eos=True, **sampling)


def tokens(step):
    return sum(length for name, length in step.items() if name.startswith("idle"))


@pytest.mark.parametrize("scheduling", POLICIES)
def test_alone_they_have_a_part_of_each_step_and_as_many_run(scheduling):
    engine = Engine(blocks=128, max_step_tokens=64, scheduling=scheduling)
    for i in range(12):
        idle(engine, f"idle{i}", 10, max_tokens=6)
    seen = chunks(engine)
    most = 0
    for _ in range(12):
        engine.tick()
        most = max(most, engine.scheduler.snapshot().running_idle)
    assert max(map(tokens, seen)) == 4, "a sixteenth of 64"
    assert most == 4
    engine.drain()
    engine.check_outputs()


def test_the_part_is_a_setting():
    engine = Engine(blocks=128, max_step_tokens=32, idle_step_tokens=32)
    for i in range(12):
        idle(engine, f"idle{i}", 10, max_tokens=6)
    seen = chunks(engine)
    engine.drain()
    assert max(map(tokens, seen)) == 32


@pytest.mark.parametrize("scheduling", POLICIES)
def test_a_prompt_stops_them_and_decodes_leave_them_a_quarter_of_their_part(scheduling):
    engine = Engine(blocks=256, max_step_tokens=128, scheduling=scheduling)
    for i in range(8):
        idle(engine, f"idle{i}", 4, max_tokens=60)
    for _ in range(16):
        engine.tick()
    seen = chunks(engine)
    engine.add("a", prompt(300, 3), max_tokens=12, ignore_eos=True)
    while "a" not in engine.ends:
        engine.tick()
    prompts = [step for step in seen if step.get("a", 0) > 1]
    assert [tokens(step) for step in prompts[1:]] == [0] * (len(prompts) - 1), "the first was planned before it came"
    assert {tokens(step) for step in seen if step.get("a") == 1} == {2}, "a quarter of a sixteenth of 128"
    engine.drain()
    engine.check_outputs()
    assert engine.scheduler.snapshot().running_idle == 0


def test_beside_decodes_they_take_turns():
    engine = Engine(blocks=256, max_step_tokens=128)
    for i in range(8):
        idle(engine, f"idle{i}", 4, max_tokens=40)
    for _ in range(16):
        engine.tick()
    engine.add("a", prompt(4, 3), max_tokens=20, ignore_eos=True)
    seen = chunks(engine)
    while "a" not in engine.ends:
        engine.tick()
    shared = [{name for name in step if name != "a"} for step in seen if step.get("a") == 1]
    assert set.union(*shared[:6]) == {f"idle{i}" for i in range(8)}


@pytest.mark.parametrize("scheduling", POLICIES)
def test_whoever_lacks_a_place_or_blocks_gets_theirs(scheduling):
    engine = Engine(blocks=12, max_step_tokens=64, max_running=3, scheduling=scheduling, max_preemptions=1)
    for i in range(3):
        idle(engine, f"idle{i}", 8, max_tokens=8)
    for _ in range(3):
        engine.tick()
    for round_ in range(4):  # more often than `max_preemptions`
        engine.add(f"a{round_}", prompt(36, 5 + round_), max_tokens=2, ignore_eos=True)
        engine.tick()
        engine.tick()
        assert f"a{round_}" in engine.scheduler._table.running or f"a{round_}" in engine.ends
        while f"a{round_}" not in engine.ends:
            engine.tick()
        for _ in range(2):
            engine.tick()
    engine.drain()
    engine.check_outputs()


def test_they_never_age():
    engine = Engine(blocks=64, max_step_tokens=16, max_running=2, priority_aging=3.0)
    engine.add("a", prompt(4), max_tokens=60, ignore_eos=True)
    engine.add("b", prompt(4, 1), max_tokens=60, ignore_eos=True)
    idle(engine, "idle", 4, max_tokens=4)
    engine.add("late", prompt(4, 2), priority=7, max_tokens=4, ignore_eos=True)
    for _ in range(30):
        engine.tick()
    assert engine.scheduler._table.open["late"].overdue, "a low priority ages"
    assert engine.scheduler._table.open["idle"].priority == IDLE_PRIORITY
    engine.drain()


def test_nobody_waits_for_a_prefix_that_an_idle_one_computes():
    engine = Engine(blocks=64, max_step_tokens=32)
    shared = prompt(40, 9)
    engine.add("idle", [*shared, 11], priority=IDLE_PRIORITY, max_tokens=4, ignore_eos=True)
    engine.tick()
    engine.add("a", [*shared, 12], max_tokens=1, ignore_eos=True)
    for _ in range(4):
        engine.tick()
    assert "a" in engine.ends
    engine.drain()
    engine.check_outputs()


def test_what_a_tenant_gets_idly_is_not_held_against_it():
    engine = Engine(blocks=256, max_step_tokens=32, scheduling="fair")
    for i in range(6):
        engine.add(f"i{i}", prompt(8, i), priority=IDLE_PRIORITY, tenant="batcher", max_tokens=20, ignore_eos=True)
    for _ in range(40):
        engine.tick()
    counters = engine.scheduler._policy.counters
    before = counters["batcher"]
    engine.drain()
    assert counters["batcher"] == before
    assert engine.scheduler.snapshot().generation_tokens == 120
