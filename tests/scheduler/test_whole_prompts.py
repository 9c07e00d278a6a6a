"""Prompts that may not be cut: encoders look at all tokens of a text from each of them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.base import Need
from scheduler.token_budget import split_whole
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import IDLE_PRIORITY, AddRequest, FinishReason
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult, StepResult
from tests.scheduler.sim import Engine

CONTEXT, BUDGET, PLACES = 16, 20, 6


class WholeWorker:
    """The vector of a prompt is its length; a chunk of less than a prompt is a defect."""

    def __init__(self):
        self.lengths = {}

    def run(self, step):
        self.lengths |= {new.request_id: len(new.prompt_ids) for new in step.new}
        assert step.tokens <= BUDGET
        for chunk in step.chunks:
            assert (chunk.start, chunk.length) == (0, self.lengths[chunk.request_id])
            assert len(chunk.block_table) == 1
        pooled = [Pooled(kind=OutputKind.VECTOR, values=[float(chunk.length)]) for chunk in step.chunks]
        results = [ChunkResult(request_id=c.request_id, pooled=p) for c, p in zip(step.chunks, pooled, strict=True)]
        return StepResult(step_id=step.step_id, results=results)


def engine(**config):
    return Engine(
        blocks=2 * PLACES,
        block_size=CONTEXT,
        caching=False,
        context=CONTEXT,
        worker=WholeWorker(),
        max_step_tokens=BUDGET,
        max_running=PLACES,
        whole_prompts=True,
        produces=frozenset({OutputKind.VECTOR}),
        **config,
    )


def vector(name, length, priority=0):
    return AddRequest(
        request_id=name,
        prompt_ids=list(range(length)),
        sampling=SamplingParams(max_tokens=0),
        produces=OutputKind.VECTOR,
        priority=priority,
    )


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 16)), min_size=1, max_size=12), st.integers(16, 40))
def test_shares_are_whole_and_the_first_is_always_served(asked, budget):
    needs = [Need((rank,), arrival, length) for arrival, (rank, length) in enumerate(asked)]
    shares = split_whole(needs, budget)
    assert sum(shares.values()) <= budget
    assert all(shares[need.arrival] == need.remaining for need in needs if need.arrival in shares)
    assert min(needs).arrival in shares
    left = budget - sum(shares.values())
    assert all(need.remaining > left for need in needs if need.arrival not in shares), "what fits is not left out"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scheduling", ["fcfs", "priority", "fair"])
def test_a_random_walk_ends_every_text_with_its_own_vector(seed, scheduling):
    rng, serving = Random(seed), engine(scheduling=scheduling)
    serving.after_step = lambda step: serving.scheduler.check_integrity()
    lengths = {}
    for number in range(60):
        name = f"r{number}"
        lengths[name] = rng.randint(1, CONTEXT)
        serving.submit(vector(name, lengths[name], priority=rng.choice([0, 0, 1])))
        for _ in range(rng.choice([0, 0, 1])):
            serving.tick()
    serving.drain()
    for name, length in lengths.items():
        assert serving.ends[name].finish_reason is FinishReason.STOP
        assert serving.ends[name].pooled.values == [length]
    assert serving.scheduler.pool.used == 0


def test_long_texts_do_not_wait_for_ever_behind_short_ones():
    serving = engine()
    serving.submit(vector("long", CONTEXT))
    for number in range(30):
        serving.submit(vector(f"short {number}", 6))
    for _ in range(3):
        serving.tick()
    assert "long" in serving.ends


def test_a_step_that_cannot_hold_the_longest_text_is_refused():
    with pytest.raises(ValueError, match="a step of 8 tokens cannot hold whole prompts of 9"):
        SchedulerConfig(context=9, eos_token_ids=frozenset(), fingerprint="", max_step_tokens=8, whole_prompts=True)


@pytest.mark.parametrize("share", [None, 1, BUDGET])
def test_an_idle_prompt_has_room_for_all_of_it(share):
    serving = engine(idle_step_tokens=share)
    for name in ("a", "b"):
        serving.submit(vector(name, CONTEXT, IDLE_PRIORITY))
    serving.drain()
    assert serving.ends.keys() == {"a", "b"}
