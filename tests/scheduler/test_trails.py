"""What the scheduler writes down of each request is what happened to it."""

from itertools import pairwise
from random import Random

import pytest

from scheduler.trails import Trails
from scheduler.types.messages import RequestTimes
from scheduler.types.request import Request
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.trail import Trail, WaitCause
from tests.scheduler.sim import Engine


def served(engine: Engine, ticks: int = 200) -> dict[str, Trail]:
    """Run until all have ended; their trails."""
    for _ in range(ticks):
        if not engine.scheduler.has_work:
            break
        engine.tick()
    assert not engine.scheduler.has_work
    return {name: output.trail for name, output in engine.ends.items()}


def causes(trail: Trail) -> list[tuple[WaitCause, str]]:
    return [(wait.cause, wait.behind) for wait in trail.waits]


def test_one_alone_waits_for_nobody_and_its_chunks_are_those_of_its_steps():
    engine = Engine(blocks=16, max_step_tokens=8)
    engine.add("a", list(range(20)), max_tokens=3)
    trail = served(engine)["a"]
    assert [(chunk.start, chunk.tokens) for chunk in trail.chunks] == [(0, 8), (8, 8), (16, 4)]
    steps = [chunk.step for chunk in trail.chunks]
    assert steps == sorted(set(steps))
    assert all(chunk.ended is not None and chunk.step_tokens == chunk.tokens for chunk in trail.chunks)
    assert (trail.waits, trail.preemptions, trail.loads, trail.evicted) == ([], [], [], False)


def test_it_is_said_how_many_ran_where_all_places_were_taken():
    engine = Engine(blocks=32, max_running=1)
    engine.add("a", [1] * 4, max_tokens=6)
    engine.add("b", [2] * 4, max_tokens=2)
    trail = served(engine)["b"]
    assert [(wait.cause, wait.running) for wait in trail.waits] == [(WaitCause.PLACES, 1)]
    times = engine.ends["b"].times
    assert trail.waits[0].since >= times.queued and trail.waits[0].until == times.scheduled


def test_it_is_said_who_lacked_blocks_and_who_had_them():
    engine = Engine(blocks=12, block_size=4)
    engine.add("big", list(range(28)), max_tokens=4)
    engine.tick()
    engine.add("first", list(range(100, 124)), max_tokens=2)
    engine.add("behind", list(range(200, 204)), max_tokens=2)
    trails = served(engine)
    (own,) = trails["first"].waits
    assert (own.cause, own.behind, own.holders) == (WaitCause.BLOCKS, "", ["big"]) and own.lacking > 0
    (other,) = trails["behind"].waits
    assert (other.cause, other.behind) == (WaitCause.BLOCKS, "first")


def test_it_is_said_who_computed_a_shared_prefix():
    engine = Engine(blocks=32, max_step_tokens=4)
    prefix = list(range(12))
    engine.add("a", [*prefix, 50], max_tokens=2)
    engine.add("b", [*prefix, 60], max_tokens=2)
    trail = served(engine)["b"]
    assert causes(trail) == [(WaitCause.PREFIX, "a")]
    assert trail.found_tokens == 12 and sum(chunk.tokens for chunk in trail.chunks) == 1


def test_it_is_said_who_took_its_blocks_and_when_it_went_on():
    engine = Engine(blocks=8, block_size=4)
    engine.add("low", [1] * 16, priority=5, max_tokens=8)
    for _ in range(4):
        engine.tick()
    engine.add("high", [2] * 24, priority=0, max_tokens=2)
    trail = served(engine)["low"]
    (taken,) = trail.preemptions
    assert taken.by == "high" and taken.lost >= 16 and not taken.saved
    assert taken.resumed is not None and taken.resumed > taken.at
    assert trail.waits and all(taken.at <= wait.since <= wait.until <= taken.resumed for wait in trail.waits)
    assert sum(chunk.tokens for chunk in trail.chunks) > 16  # computed again, as far as it was not found


def test_two_waits_for_the_same_cause_are_two_if_it_ran_between_them():
    trails, one = Trails(), request("a")
    for now in (1.0, 2.0):
        trails.planning(now)
        trails.passed_over(one, WaitCause.TOKENS)
    trails.planning(3.0)
    trails.started(one, evicted=False)
    one.started = True
    trails.planning(50.0)
    trails.waits_again(one)
    for now in (51.0, 52.0):
        trails.planning(now)
        trails.passed_over(one, WaitCause.TOKENS)
    assert [(wait.since, wait.until) for wait in one.trail.waits] == [(1.0, 3.0), (51.0, 52.0)]


def test_what_others_waited_for_while_it_ran_is_no_wait_of_its_own():
    """Not only who is preempted stands in line again: so does who got only a part of what it loaded."""
    trails, one = Trails(), request("a")
    trails.planning(1.0)
    trails.started(one, evicted=False)
    one.started = True
    for now in (2.0, 3.0, 4.0):
        trails.planning(now)
        trails.line_stands(WaitCause.PLACES, [one])
    trails.planning(10.0)
    trails.waits_again(one)
    trails.planning(11.0)
    trails.line_stands(WaitCause.BLOCKS, [], one, 3)
    trails.planning(12.0)
    trails.started(one, evicted=False)
    assert causes(one.trail) == [(WaitCause.BLOCKS, "")]


def test_a_preemption_by_itself_says_so_and_that_it_was_saved_and_loaded():
    engine = Engine(blocks=8, block_size=4, tiers={"host": 64})
    engine.add("a", [1] * 12, max_tokens=12)
    engine.add("b", [2] * 12, max_tokens=12)
    trails = served(engine)
    hit = [trail for trail in trails.values() if trail.preemptions]
    assert hit
    for trail in hit:
        assert all(taken.saved and taken.by in ("a", "b") for taken in trail.preemptions)
        assert trail.loads and all(
            load.tiers == ["host"] and load.whole and load.until >= load.since for load in trail.loads
        )


def test_what_was_evicted_is_told_from_what_nobody_sent_before():
    engine = Engine(blocks=8, block_size=4)
    for name, first in (("a", 0), ("other", 100), ("again", 0), ("new", 200)):
        engine.add(name, list(range(first, first + 24)), max_tokens=2)
        trails = served(engine)
    assert {name: trail.evicted for name, trail in trails.items()} == {
        "a": False,
        "other": False,
        "again": True,
        "new": False,
    }


@pytest.mark.parametrize("seed", range(8))
def test_waits_lie_in_the_time_in_the_queue_and_do_not_overlap(seed, drawn_load):
    engine = drawn_load(seed)
    for name, trail in served(engine, 2000).items():
        times = engine.ends[name].times
        waits = trail.waits
        assert all(wait.since <= wait.until for wait in waits)
        assert all(wait.since >= times.queued for wait in waits), (times, waits)
        if not trail.preemptions:
            assert all(wait.until <= times.scheduled for wait in waits), (times, waits)
            assert all(a.until <= b.since for a, b in pairwise(waits)), waits
        resumed = [taken.resumed for taken in trail.preemptions]
        assert (
            None not in resumed[:-1]
        )  # its last token may have been in flight when it was preempted for the last time
        assert all(taken.at <= taken.resumed for taken in trail.preemptions if taken.resumed is not None)


@pytest.fixture
def drawn_load():
    def load(seed: int) -> Engine:
        rng = Random(seed)
        engine = Engine(blocks=16, block_size=4, max_running=rng.choice((3, 64)), max_step_tokens=rng.choice((4, 16)))
        for number in range(25):
            prompt = [rng.randrange(2)] * rng.randint(1, 30)
            engine.add(str(number), prompt, max_tokens=rng.randint(1, 10), priority=rng.randrange(3))
            for _ in range(rng.randrange(4)):
                if engine.scheduler.has_work:
                    engine.tick()
        return engine

    return load


def request(name: str) -> Request:
    times = RequestTimes(queued=0.0, scheduled=0.0)
    sampling = SamplingParams(max_tokens=1)
    return Request(request_id=name, prompt_ids=[1], sampling=sampling, priority=0, arrival=0, root=b"", times=times)


def test_the_lists_are_bounded():
    trails, one = Trails(), request("a")
    for plan in range(1000):
        trails.planning(float(plan))
        trails.line_stands(WaitCause.BLOCKS, [], request(str(plan)), 1)
        trails.passed_over(one, WaitCause.PREFIX, str(plan))
    trails.started(one, evicted=False)
    assert len(one.trail.waits) == 64
