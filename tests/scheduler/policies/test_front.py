"""A queue whose front cannot come in is refused at a glance: two schedulers of one history, one of which looks at each request."""

import random

import pytest

from scheduler.kv.block_pool import BlockPool
from scheduler.policies.base import SchedulingPolicy
from scheduler.policies.waiting_queue import SCAN, WaitingQueue
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult, Step, StepResult
from tests.drawn import drawn


class OneByOne(SchedulingPolicy):
    """The same order, of which nothing is known before it is gone through."""

    def admission_order(self, waiting, running, warm):
        yield from super().admission_order(waiting, running, warm)


def message(number: int, rng: random.Random) -> AddRequest:
    prompt = [number if rng.random() < 0.97 else 10**6 + rng.randrange(3)] * (
        rng.randint(60, 90) if rng.random() < 0.97 else 3
    )
    sampling = SamplingParams(max_tokens=rng.randint(1, 8), ignore_eos=True)
    priority = int(rng.random() < 0.02)
    return AddRequest(request_id=str(number), prompt_ids=prompt, sampling=sampling, priority=priority)


def played(scheduler: Scheduler, step: Step) -> list[tuple[object, ...]]:
    """Run the step; what it had."""
    results = [ChunkResult(request_id=c.request_id, token_ids=[7] if c.samples else []) for c in step.chunks]
    scheduler.update(step, StepResult(step_id=step.step_id, results=results), 0.0)
    return [(c.request_id, c.start, c.length, tuple(c.block_table)) for c in step.chunks]


@pytest.mark.parametrize(("tokens", "running", "blocks"), [(24, 40, 600), (64, 6, 100), (64, 40, 40)])
@pytest.mark.parametrize("seed", range(drawn(2)))
def test_the_same_requests_come_in(seed, tokens, running, blocks):
    rng = random.Random(seed)
    config = SchedulerConfig(
        context=100,
        eos_token_ids=frozenset(),
        fingerprint="front",
        max_step_tokens=tokens,
        max_running=running,
    )
    policies = SchedulingPolicy(), OneByOne()
    schedulers = [Scheduler(config, BlockPool(blocks, 4), policy=policy) for policy in policies]
    refused = 0
    look = schedulers[0]._prefills._admission._are_in_vain

    def counted(*arguments: object) -> bool:
        nonlocal refused
        found = look(*arguments)  # type: ignore[arg-type]
        refused += found
        return found

    schedulers[0]._prefills._admission._are_in_vain = counted  # type: ignore[method-assign]
    planned: list[Step | None] = [None, None]
    number = 0
    for _ in range(200):
        for _ in range(rng.choice((0, 0, 0, 0, 0, 9))):
            newcomer = message(number, rng)
            number += 1
            for scheduler in schedulers:
                scheduler.add(newcomer, 0.0)
        seen = []
        for place, scheduler in enumerate(schedulers):
            plan = planned[place]
            step = scheduler.schedule(0.0) if plan is None else scheduler.refresh(plan, 0.0)
            planned[place] = scheduler.schedule(0.0)
            seen.append((played(scheduler, step), scheduler.snapshot()))
        assert seen[0] == seen[1]
        for one, other in zip(*(scheduler._table.waiting for scheduler in schedulers), strict=True):
            assert one.trail == other.trail and one.passed == other.passed
    schedulers[0].check_integrity()
    assert (refused > 5) == (tokens < 64) and number > SCAN


def test_a_front_is_the_same_list_until_it_changes():
    queue = WaitingQueue(lambda _: "", 32)
    scheduler = Scheduler(
        SchedulerConfig(context=100, eos_token_ids=frozenset(), fingerprint="front"), BlockPool(64, 4)
    )
    rng = random.Random(0)
    requests = [scheduler._queue(message(number, rng), 0.0) for number in range(SCAN + 10)]
    for each in requests:
        each.priority = 0

    def front() -> list[object] | None:
        return queue.admission_order("", lambda _: False).front  # type: ignore[return-value]

    for each in requests[: SCAN + 5]:
        queue.add(each)
    first = front()
    assert first == requests[:SCAN]
    queue.add(requests[SCAN + 5])
    assert front() is first, "it is behind them"
    queue.remove(requests[3])
    assert front() == [*requests[:3], *requests[4 : SCAN + 1]]
    queue.add(requests[3])
    assert front() == first
    assert WaitingQueue(lambda _: "", SCAN + 1).admission_order("", lambda _: False).front is None, "others may pass"
