"""When the engine draws what it does: only while somebody watches, not too often, and not for too much of its time."""

import math

import pytest

from engine.map_sampler import INTERVAL_SECONDS, MOST_SHARE, MapSampler
from scheduler.types.engine_map import MOST_PROMPTS, MOST_STEPS, BlockCells, EngineMap
from scheduler.types.step import Chunk, ChunkPhase, Step


class Drawn:
    """A scheduler, and the clock: to draw takes as long as the test says."""

    def __init__(self):
        self.now, self.takes, self.drawn = 100.0, 0.0, 0

    def draw_map(self, now):
        self.now += self.takes
        self.drawn += 1
        cells = BlockCells(blocks=1, per_cell=1, runs=[], owners=[])
        return EngineMap(
            at=now, block_size=1, used=0, cached=0, free=1, running=0, waiting=0, cells=cells, requests=[], tiers=[]
        )


@pytest.fixture
def scheduler():
    return Drawn()


@pytest.fixture
def sampler(scheduler):
    return MapSampler(scheduler, lambda: scheduler.now)


def step(number, prompts=1):
    chunks = [
        Chunk(request_id=f"p{i}", start=0, length=4, block_table=[0], phase=ChunkPhase.PREFILL) for i in range(prompts)
    ]
    chunks.append(Chunk(request_id="d", start=9, length=1, block_table=[0], phase=ChunkPhase.DECODE, samples=1))
    return Step(step_id=number, chunks=chunks)


def test_nothing_is_drawn_or_waited_for_while_nobody_watches(sampler, scheduler):
    for number in range(3):
        sampler.changed()
        sampler.step_ended(step(number), 0.1)
        assert sampler.take() is None and sampler.wait == math.inf
    sampler.publish(True)
    sampler.publish(False)
    sampler.changed()
    assert sampler.take() is None and sampler.wait == math.inf and scheduler.drawn == 0


def test_the_first_map_comes_at_once_and_no_further_one_until_something_changes(sampler, scheduler):
    sampler.publish(True)
    assert sampler.wait == 0.0
    assert sampler.take().steps == []
    scheduler.now += 10
    assert sampler.wait == math.inf and sampler.take() is None
    sampler.changed()
    assert sampler.wait == 0.0 and sampler.take() is not None


def test_maps_are_four_a_second_at_most_and_have_the_steps_between(sampler, scheduler):
    sampler.publish(True)
    sampler.take()
    for number in range(64):
        scheduler.now += 1 / 64
        sampler.step_ended(step(number), 0.01)
        sampler.changed()
        if (drawn := sampler.take()) is not None:
            assert [each.number for each in drawn.steps] == list(range(number - 15, number + 1))
            assert (drawn.steps[-1].prompt_tokens, drawn.steps[-1].decodes) == (4, 1)
            assert drawn.steps[-1].prompts == [("p0", 0, 4)] and drawn.steps[-1].ended == scheduler.now
    assert scheduler.drawn == 1 + 4
    sampler.changed()
    assert sampler.wait == INTERVAL_SECONDS


def test_a_map_that_takes_long_is_drawn_less_often(sampler, scheduler):
    scheduler.takes = 0.05
    sampler.publish(True)
    before = scheduler.now
    for _ in range(40):
        sampler.changed()
        scheduler.now += sampler.wait
        assert sampler.take() is not None
    assert scheduler.drawn * scheduler.takes <= MOST_SHARE * (scheduler.now - before) + scheduler.takes


def test_the_newest_steps_are_kept_and_some_of_their_prompts(sampler):
    sampler.publish(True)
    for number in range(500):
        sampler.step_ended(step(number, prompts=50), 0.01)
    steps = sampler.take().steps
    assert [each.number for each in steps] == list(range(500 - MOST_STEPS, 500))
    assert {len(each.prompts) for each in steps} == {MOST_PROMPTS} and steps[0].prompt_tokens == 200
