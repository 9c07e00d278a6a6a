"""The cost of steps, learnt from steps."""

import random

import pytest

from scheduler.router.step_cost import StepCost
from scheduler.types.step import StepWork

TRUE = (3e-4, 6e-4, 8e-3, 2e-8, 4e-8)


def seconds(work: StepWork, noise: float = 1.0) -> float:
    amounts = (work.prompt_tokens, work.decodes, 1, work.prompt_keys, work.decode_keys)
    return noise * sum(constant * amount for constant, amount in zip(TRUE, amounts, strict=True))


def drawn(rng: random.Random) -> StepWork:
    prompt, start, decodes = rng.choice((0, 0, 64, 512)), rng.randrange(8000), rng.randrange(40)
    keys = prompt * start + prompt * (prompt + 1) // 2
    return StepWork(
        prompt_tokens=prompt,
        prompt_keys=keys,
        decodes=decodes or not prompt,
        decode_keys=decodes * rng.randrange(1, 4000),
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_a_step_takes_is_found_through_noise(seed):
    rng, cost = random.Random(seed), StepCost()
    assert not cost.measured
    for _ in range(600):
        work = drawn(rng)
        cost.observe(work, seconds(work, rng.uniform(0.8, 1.2)))
    assert cost.measured
    for _ in range(50):
        work = drawn(rng)
        assert cost.seconds(work) == pytest.approx(seconds(work), rel=0.15)
    assert cost.token_seconds == pytest.approx(TRUE[0], rel=0.15)


def test_many_steps_take_their_fixed_time_each():
    rng, cost = random.Random(1), StepCost()
    for _ in range(600):
        work = drawn(rng)
        cost.observe(work, seconds(work))
    four = StepWork(prompt_tokens=2048, prompt_keys=2048 * 2049 // 2)
    assert cost.seconds(four, 4) == pytest.approx(seconds(four) + 3 * TRUE[2], rel=0.05)


def test_a_machine_that_becomes_slower_is_noticed():
    rng, cost = random.Random(2), StepCost()
    for factor in (1, 3):
        for _ in range(1500):
            work = drawn(rng)
            cost.observe(work, factor * seconds(work))
    assert cost.seconds(StepWork(prompt_tokens=512)) == pytest.approx(3 * seconds(StepWork(prompt_tokens=512)), rel=0.2)


def test_what_was_not_measured_counts_for_nothing():
    cost, fresh = StepCost(), StepCost()
    cost.observe(StepWork(prompt_tokens=5), 0.0)
    cost.observe(StepWork(), 1.0)
    work = StepWork(prompt_tokens=100, decodes=3)
    assert cost.seconds(work) == fresh.seconds(work) > 0


def short_prompts(rng: random.Random, count: int, chunk: int) -> list[StepWork]:
    """Steps with a chunk each of prompts that have 14 to 54 tokens."""
    works = []
    while len(works) < count:
        length = rng.randrange(14, 55)
        for begin in range(0, length, chunk):
            tokens = min(chunk, length - begin)
            works.append(StepWork(prompt_tokens=tokens, prompt_keys=tokens * begin + tokens * (tokens + 1) // 2))
    return works[:count]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_steps_that_read_few_keys_do_not_tell_what_many_cost(chunk, seed):
    """After few short prompts, some of which a busy machine made slow, long ones are not expected to take for ever."""
    rng, cost, pace = random.Random(seed), StepCost(), list[float]()
    long = StepWork(prompt_tokens=4096, prompt_keys=4096 * 4097 // 2)
    for number, work in enumerate(short_prompts(rng, 24, chunk)):
        pace.append(rng.uniform(0.04, 0.06) * (4 if 4 <= number < 12 else 1))
        cost.observe(work, work.prompt_tokens * pace[-1])
        if cost.measured:
            assert 0.5 * min(pace) < cost.seconds(long, 4096 / chunk) / 4096 < 1.1 * max(pace)


def test_what_many_keys_cost_is_known_from_a_few_steps_that_read_them():
    cost = StepCost()
    for start in range(0, 4096, 256):
        work = StepWork(prompt_tokens=256, prompt_keys=256 * start + 256 * 257 // 2)
        cost.observe(work, work.prompt_tokens * 5e-3 + work.prompt_keys * 2e-6)
    long = StepWork(prompt_tokens=256, prompt_keys=256 * 8000)
    assert cost.seconds(long) == pytest.approx(256 * 5e-3 + 256 * 8000 * 2e-6, rel=0.15)
