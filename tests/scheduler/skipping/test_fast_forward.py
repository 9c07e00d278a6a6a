"""Skipping steps leaves the books exactly as the plain rounds do: two schedulers of one history, compared field by field."""

import itertools
import random
from dataclasses import fields, is_dataclass
from enum import Enum

import pytest

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult, Step, StepResult
from scheduler.types.transfers import TransferResult
from tests.drawn import drawn


def books(thing: object, seen: dict[int, int] | None = None) -> object:
    """Every field of every object that can be reached, as plain data; order counts. What is met again is its number alone."""
    seen = {} if seen is None else seen
    if isinstance(thing, Enum | itertools.count):
        return repr(thing)
    if isinstance(thing, dict):
        return [(books(key, seen), books(value, seen)) for key, value in thing.items()]
    if isinstance(thing, list | tuple):
        return [books(each, seen) for each in thing]
    if not (is_dataclass(thing) or hasattr(thing, "__dict__")):
        return sorted(thing) if isinstance(thing, set) else thing
    if id(thing) in seen:
        return ("seen", seen[id(thing)])
    seen[id(thing)] = len(seen)
    names = [each.name for each in fields(thing)] if is_dataclass(thing) else list(vars(thing))
    return [(name, books(getattr(thing, name), seen)) for name in names]


def token_of(request_id: str) -> int:
    return 1000 + int(request_id) % 3  # some sequences say the same: their blocks have one content


def rounds(scheduler: Scheduler, planned: Step | None, count: int) -> Step:
    """As the engine's loop does it."""
    for _ in range(count):
        step = scheduler.schedule(0.0) if planned is None else scheduler.refresh(planned, 0.0)
        for transfer in step.transfers:  # each ends before its step
            scheduler.absorb_transfer(
                TransferResult(transfer_id=transfer.transfer_id, sizes=[1] * len(transfer.blocks)), 0.0
            )
        planned = scheduler.schedule(0.0)
        results = [
            ChunkResult(request_id=c.request_id, token_ids=[token_of(c.request_id)] if c.samples else [])
            for c in step.chunks
        ]
        scheduler.update(step, StepResult(step_id=step.step_id, results=results), 0.0)
    assert planned is not None
    return planned


def message(number: int, rng: random.Random) -> AddRequest:
    prompt = [rng.randrange(2)] * rng.randint(1, 40)
    sampling = SamplingParams(max_tokens=rng.randint(1, 60), ignore_eos=True)
    return AddRequest(
        request_id=str(number),
        prompt_ids=prompt,
        sampling=sampling,
        priority=rng.randrange(2),
        tenant=rng.choice("ab"),
        own_priority=number % 8 // 6,
    )


def schedulers_of(rng: random.Random, scheduling: str, tiers: int = 0) -> list[Scheduler]:
    """Two of one configuration."""
    config = SchedulerConfig(
        context=100,
        eos_token_ids=frozenset(),
        fingerprint="skip",
        max_step_tokens=rng.choice((12, 32, 64)),
        max_running=rng.choice((3, 8, 64)),
        scheduling=scheduling,
    )
    blocks, block_size = rng.choice((26, 40, 80)), rng.choice((4, 8))
    caching, choice = rng.random() < 0.8, rng.choice((0.0, 0.25))
    pools = [BlockPool(blocks, block_size, caching=caching, choice=choice) for _ in range(2)]
    below = [[TierIndex("host", 9, 1, eviction_of("lru", 9), shared=True)][:tiers] for _ in pools]
    return [Scheduler(config, pool, TransferPlanner(pool, each)) for pool, each in zip(pools, below, strict=True)]


@pytest.mark.parametrize("scheduling", ["priority", "fair", "throughput"])
@pytest.mark.parametrize("seed", range(drawn(8)))
def test_skipped_steps_are_as_many_rounds(seed, scheduling):
    assert_skipped_steps_are_as_many_rounds(seed, scheduling)


@pytest.mark.parametrize("seed", range(drawn(4)))
def test_with_a_tier_below_where_nothing_is_under_way(seed):
    assert_skipped_steps_are_as_many_rounds(seed, "priority", tiers=1)


def assert_skipped_steps_are_as_many_rounds(seed: int, scheduling: str, tiers: int = 0) -> None:
    rng = random.Random(seed)
    skipping, plain = schedulers_of(rng, scheduling, tiers)
    planned: Step | None = None
    plan: Step | None = None
    number = skips = 0
    for _ in range(80):
        while rng.random() < 0.2:
            newcomer = message(number, rng)
            skipping.add(newcomer, 0.0)
            plain.add(newcomer, 0.0)
            number += 1
        if skipping.idle:
            planned = plan = None
            continue
        planned, plan = rounds(skipping, planned, 1), rounds(plain, plan, 1)
        limit = skipping.steady_steps(planned)
        if limit:
            skips += 1
            count = rng.randint(1, limit)
            plan = rounds(plain, plan, count)
            planned = skipping.fast_forward(planned, count, token_of)
            assert books(planned) == books(plan)
            skipping.check_integrity()
            assert books(skipping) == books(plain)
    assert books(skipping) == books(plain)
    assert skips > 1 and number > 5


def test_nothing_is_skipped_where_a_plan_would_change():
    def at(waiting: int = 0, **config: int) -> int:
        scheduler = Scheduler(
            SchedulerConfig(context=100, eos_token_ids=frozenset(), fingerprint="skip", **config), BlockPool(64, 4)
        )
        for number in range(4 + waiting):
            sampling = SamplingParams(max_tokens=20, ignore_eos=True)
            scheduler.add(AddRequest(request_id=str(number), prompt_ids=[number] * 4, sampling=sampling), 0.0)
        return scheduler.steady_steps(rounds(scheduler, None, 3))

    assert at() == 4, "as many steps as a block has tokens"
    assert at(waiting=3, max_running=4) == 4, "the waiting cannot come in"
    assert at(waiting=3, max_running=4, max_step_tokens=3) == 0, "decodes take turns"


def test_nothing_is_skipped_over_an_end_or_with_a_newcomer():
    scheduler = Scheduler(
        SchedulerConfig(context=100, eos_token_ids=frozenset(), fingerprint="skip"), BlockPool(64, 32)
    )
    sampling = SamplingParams(max_tokens=9, ignore_eos=True)
    scheduler.add(AddRequest(request_id="0", prompt_ids=[1, 2, 3], sampling=sampling), 0.0)
    planned = rounds(scheduler, None, 2)
    assert scheduler.steady_steps(planned) == 6, "two tokens are out, the ninth ends it"
    scheduler.add(AddRequest(request_id="1", prompt_ids=[4], sampling=sampling), 0.0)
    assert scheduler.steady_steps(planned) == 0
