"""Rows without chunks bring what rows with chunks bring: two schedulers of one history, compared request by request and block by
block after every step."""

import random
from dataclasses import asdict

import pytest

from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.skipping.steady_decodes import SteadyStep
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest
from scheduler.types.request import Request
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult, Step, StepResult
from tests.drawn import drawn
from tests.scheduler.skipping.test_fast_forward import books, token_of

FIELDS = (
    "state",
    "tokens",
    "computed",
    "in_flight",
    "block_table",
    "published",
    "high_water",
    "last_step",
    "preemptions",
)


class Run:
    """A scheduler, stepped as the engine's loop steps one."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool, *, carries: bool) -> None:
        self.scheduler = Scheduler(config, pool)
        self.planned: Step | None = None
        self.rows = 0
        self.ended: list[str] = []
        if carries:
            self.scheduler.steady.carry(lambda request_id, steps: [token_of(request_id)] * len(steps))

    def round(self) -> Step:
        """One step. Returns it as it ran."""
        scheduler, planned = self.scheduler, self.planned
        step = scheduler.schedule(0.0) if planned is None else scheduler.refresh(planned, 0.0)
        self.planned = scheduler.schedule(0.0)
        self.rows += step.rows if isinstance(step, SteadyStep) else 0
        self.work = step.work()
        results = [
            ChunkResult(request_id=c.request_id, token_ids=[token_of(c.request_id)] if c.samples else [])
            for c in step.chunks
        ]
        for output in scheduler.update(step, StepResult(step_id=step.step_id, results=results), 0.0):
            if output.finish_reason is not None:
                self.ended.append(output.request_id)
        return step

    def state(self) -> object:
        """All that later plans depend on."""
        scheduler = self.scheduler
        scheduler.check_integrity()
        requests = [(name, self._fields(each)) for name, each in scheduler._table.open.items()]
        waiting = [each.request_id for each in scheduler._table.waiting]
        return (
            requests,
            list(scheduler._table.running),
            waiting,
            asdict(scheduler.snapshot()),
            books(scheduler.pool),
            self.ended,
        )

    @staticmethod
    def _fields(request: Request) -> list[object]:
        return [getattr(request, name) for name in FIELDS]


def message(number: int, rng: random.Random, urgencies: int) -> AddRequest:
    prompt = [rng.randrange(3)] * rng.randint(1, 60)
    return AddRequest(
        request_id=str(number),
        prompt_ids=prompt,
        sampling=SamplingParams(max_tokens=rng.randint(1, 40), ignore_eos=True),
        priority=rng.randrange(urgencies),
        tenant=rng.choice("ab"),
    )


@pytest.mark.parametrize("scheduling", ["priority", "fcfs", "throughput", "fair"])
@pytest.mark.parametrize("seed", range(drawn(8)))
def test_rows_without_chunks_change_nothing(seed, scheduling):
    rng = random.Random(seed)
    config = SchedulerConfig(
        context=100,
        eos_token_ids=frozenset(),
        fingerprint="steady",
        max_step_tokens=rng.choice((12, 32, 64)),
        max_running=rng.choice((3, 8, 64)),
        scheduling=scheduling,
    )
    blocks, size, caching = rng.choice((26, 40, 120)), rng.choice((4, 8)), rng.random() < 0.8
    urgencies = rng.choice((1, 1, 2))
    carrying, plain = (Run(config, BlockPool(blocks, size, caching=caching), carries=each) for each in (True, False))
    number = 0
    for _ in range(150):
        while rng.random() < 0.15:
            newcomer = message(number, rng, urgencies)
            carrying.scheduler.add(newcomer, 0.0)
            plain.scheduler.add(newcomer, 0.0)
            number += 1
        if open_ones := [*plain.scheduler._table.open] if rng.random() < 0.03 else []:
            gone = rng.choice(open_ones)
            assert carrying.scheduler.abort(gone, 0.0) == plain.scheduler.abort(gone, 0.0)
        if plain.scheduler.idle:
            carrying.planned = plain.planned = None
            continue
        step, same = carrying.round(), plain.round()
        assert (step.step_id, step.tokens, carrying.work) == (same.step_id, same.tokens, plain.work)
        if rng.random() < 0.5:
            assert carrying.state() == plain.state()
    assert carrying.state() == plain.state()
    assert number > 5 and (carrying.rows > 0) == (scheduling != "fair")


def test_most_rows_of_most_steps_have_no_chunk():
    config = SchedulerConfig(context=400, eos_token_ids=frozenset(), fingerprint="steady")
    run = Run(config, BlockPool(200, 16), carries=True)
    for number in range(12):
        sampling = SamplingParams(max_tokens=200, ignore_eos=True)
        run.scheduler.add(AddRequest(request_id=str(number), prompt_ids=[number] * 20, sampling=sampling), 0.0)
    chunks = sum(len(run.round().chunks) for _ in range(150))
    assert run.rows > 12 * 140 and chunks < 60
