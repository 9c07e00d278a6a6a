"""Which steps are planned in one go, and that they are what the scheduler's parts would have planned, each asked in turn."""

import random
from collections.abc import Callable
from dataclasses import asdict

import pytest

from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.skipping.calm_plans import CalmPlans
from scheduler.trails import NoTrails, Trails
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import IDLE_PRIORITY, AddRequest
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Step
from tests.drawn import drawn
from tests.scheduler.skipping.test_fast_forward import rounds, token_of


def scheduler_of(pool: BlockPool, trails: Trails | None = None, **config: object) -> Scheduler:
    settings = SchedulerConfig(context=100, eos_token_ids=frozenset(), fingerprint="calm", **config)  # type: ignore[arg-type]
    scheduler = Scheduler(settings, pool, trails=trails or NoTrails())
    scheduler.steady.carry(lambda request_id, steps: [token_of(request_id)] * len(steps))
    return scheduler


def message(number: int, prompt: int = 5, output: int = 20, **more: object) -> AddRequest:
    sampling = SamplingParams(max_tokens=output, ignore_eos=True)
    return AddRequest(request_id=str(number), prompt_ids=[number] * prompt, sampling=sampling, **more)  # type: ignore[arg-type]


@pytest.fixture
def told(monkeypatch) -> list[bool]:
    """Whether each plan was calm."""
    found: list[bool] = []
    plan = CalmPlans.plan

    def watched(self: CalmPlans, step: Step, now: float) -> bool:
        found.append(plan(self, step, now))
        return found[-1]

    monkeypatch.setattr(CalmPlans, "plan", watched)
    return found


def test_a_plain_load_is_calm_from_its_first_step_to_its_last(told):
    scheduler = scheduler_of(BlockPool(200, 4), max_running=3)
    for number in range(9):
        scheduler.add(message(number, prompt=5 + 9 * number), 0.0)
    planned = None
    while not scheduler.idle:
        planned = rounds(scheduler, planned, 1)
    assert all(told) and len(told) > 50


@pytest.mark.parametrize(
    "first",
    [
        lambda: scheduler_of(BlockPool(200, 4), trails=Trails()),
        lambda: scheduler_of(BlockPool(200, 4), scheduling="fair"),
        lambda: scheduler_of(BlockPool(200, 4), scheduling="throughput"),
        lambda: scheduler_of(BlockPool(200, 4), priority_aging=5.0),
        lambda: scheduler_of(BlockPool(200, 4), whole_prompts=True),
    ],
    ids=["trails", "fair", "throughput", "aging", "whole prompts"],
)
def test_a_scheduler_that_looks_at_more_is_never_calm(first: Callable[[], Scheduler], told):
    scheduler = first()
    scheduler.add(message(0), 0.0)
    rounds(scheduler, None, 4)
    assert told and not any(told)


def test_a_server_plans_nothing_here(told):
    scheduler = Scheduler(SchedulerConfig(context=100, eos_token_ids=frozenset(), fingerprint="c"), BlockPool(64, 4))
    scheduler.add(message(0), 0.0)
    rounds(scheduler, None, 4)
    assert told and not any(told)


def test_who_may_be_pushed_out_or_is_idle_is_not_calm(told):
    scheduler = scheduler_of(BlockPool(64, 4), max_running=1)
    scheduler.add(message(0, priority=1), 0.0)
    planned = rounds(scheduler, None, 3)
    assert all(told)
    told.clear()
    scheduler.add(message(1, priority=0), 0.0)
    planned = rounds(scheduler, planned, 1)
    assert told == [False] and scheduler.stats.preemptions == 1
    scheduler.abort_all(0.0)
    told.clear()
    scheduler.add(message(2, priority=IDLE_PRIORITY), 0.0)
    rounds(scheduler, planned, 2)
    assert not any(told)


def test_neither_are_steps_without_blocks_or_tokens_for_all(told):
    few = scheduler_of(BlockPool(26, 4))
    for number in range(8):
        few.add(message(number, prompt=8, output=60), 0.0)
    planned = None
    for _ in range(60):
        planned = rounds(few, planned, 1)
    assert few.stats.preemptions > 0 and not all(told) and any(told)
    told.clear()
    narrow = scheduler_of(BlockPool(64, 4), max_step_tokens=4)
    for number in range(6):
        narrow.add(message(number), 0.0)
    rounds(narrow, None, 20)
    assert told[0] and not told[-1], "decodes take turns"


@pytest.mark.parametrize("seed", range(drawn(12)))
def test_each_step_is_what_the_parts_would_have_planned(seed, monkeypatch):
    """Two schedulers that both carry rows; one asks its parts. Steps are compared whole, chunks and all."""
    rng = random.Random(seed)
    config = {"max_step_tokens": rng.choice((12, 32, 64)), "max_running": rng.choice((3, 8, 64))}
    blocks, size = rng.choice((40, 120)), rng.choice((4, 8))
    calm, asked = (scheduler_of(BlockPool(blocks, size), **config) for _ in range(2))
    monkeypatch.setattr(asked._calm, "_possible", False)
    plans: list[Step | None] = [None, None]
    number = 0
    for _ in range(120):
        while rng.random() < 0.2:
            newcomer = message(number, rng.randint(1, 60), rng.randint(1, 40), priority=number % 9 // 8)
            calm.add(newcomer, 0.0)
            asked.add(newcomer, 0.0)
            number += 1
        if asked.idle:
            plans = [None, None]
            continue
        plans = [rounds(each, plan, 1) for each, plan in zip((calm, asked), plans, strict=True)]
        one, other = map(asdict, plans)  # type: ignore[arg-type]
        assert one == other
        assert asdict(calm.snapshot()) == asdict(asked.snapshot())
    calm.check_integrity()
    assert number > 10
