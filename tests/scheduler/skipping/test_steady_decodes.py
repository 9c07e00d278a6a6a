"""Rows without chunks bring what rows with chunks bring: two schedulers of one history, compared request by request and block by
block after every step."""

import random
from dataclasses import asdict

import pytest

from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.skipping.steady_decodes import SteadyStep
from scheduler.trails import NoTrails
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
        self.scheduler = Scheduler(config, pool, trails=NoTrails())
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


def own_names(number: int, prompt: int, output: int, size: int) -> list[bytes]:
    """Of a text that nobody else has."""
    return [b"%d:%d" % (number, place) for place in range((prompt + output) // size)]


def in_any_order(run: Run) -> object:
    """The state, in which blocks of answers may have got their keys in another order."""
    *rest, pool, ended = run.state()  # type: ignore[misc]
    assert [name for name, _ in pool].count("_index") == 1
    return rest, [(name, _unordered(name, value)) for name, value in pool], ended


def _unordered(name: str, value: list[object]) -> object:
    """The pool's index, and what its unused blocks see of it, without an order."""
    if name == "_unused":
        return [(inner, _unordered(inner, each)) for inner, each in value]  # type: ignore[misc]
    return sorted(value, key=repr) if name in ("_index", "_holders") else value


@pytest.mark.parametrize("scheduling", ["priority", "throughput"])
@pytest.mark.parametrize("seed", range(drawn(6)))
def test_blocks_whose_names_are_given_are_named_when_somebody_looks(seed, scheduling):
    """The same books, whether names are given or not, and carried or not."""
    rng = random.Random(seed)
    size = rng.choice((4, 8))
    config = SchedulerConfig(
        context=100,
        eos_token_ids=frozenset(),
        fingerprint="named",
        max_step_tokens=rng.choice((12, 32)),
        max_running=rng.choice((3, 8)),
        scheduling=scheduling,
    )
    blocks = rng.choice((26, 60))
    carrying, plain = (Run(config, BlockPool(blocks, size), carries=each) for each in (True, False))
    number = 0
    for _ in range(150):
        while rng.random() < 0.15:
            prompt, output = rng.randint(1, 60), rng.randint(1, 40)
            sampling = SamplingParams(max_tokens=output, ignore_eos=True)
            newcomer = AddRequest(request_id=str(number), prompt_ids=[10**4 + number] * prompt, sampling=sampling)
            for run in (carrying, plain):
                run.scheduler.add(newcomer, 0.0, own_names(number, prompt, output, size))
            number += 1
        if plain.scheduler.idle:
            carrying.planned = plain.planned = None
            continue
        step, same = carrying.round(), plain.round()
        assert (step.step_id, step.tokens, carrying.work) == (same.step_id, same.tokens, plain.work)
        if rng.random() < 0.3:
            assert in_any_order(carrying) == in_any_order(plain)
    assert in_any_order(carrying) == in_any_order(plain)
    assert carrying.rows > 0 and number > 5


def test_given_names_are_those_of_blocks():
    scheduler = Scheduler(SchedulerConfig(context=100, eos_token_ids=frozenset(), fingerprint="n"), BlockPool(64, 4))
    sampling = SamplingParams(max_tokens=20, ignore_eos=True)
    names = own_names(0, 10, 20, 4)
    scheduler.add(AddRequest(request_id="0", prompt_ids=[7] * 10, sampling=sampling), 0.0, names)
    run = Run.__new__(Run)
    run.scheduler, run.planned, run.rows, run.ended = scheduler, None, 0, []
    for _ in range(9):
        run.round()
    request = scheduler._table.open["0"]
    full = len(request.tokens) // 4
    assert full > 3 and request.block_hashes == names[:full] and scheduler.pool.resident(names[full - 1])
    scheduler.add(AddRequest(request_id="1", prompt_ids=[7] * 10, sampling=sampling), 0.0, names[:1])
    second = scheduler._table.open["1"]
    second.extend_hashes(4)
    assert second.block_hashes[0] == names[0] and second.block_hashes[1] not in names, "what is not given is computed"


def test_most_rows_of_most_steps_have_no_chunk():
    config = SchedulerConfig(context=400, eos_token_ids=frozenset(), fingerprint="steady")
    run = Run(config, BlockPool(200, 16), carries=True)
    for number in range(12):
        sampling = SamplingParams(max_tokens=200, ignore_eos=True)
        run.scheduler.add(AddRequest(request_id=str(number), prompt_ids=[number] * 20, sampling=sampling), 0.0)
    chunks = sum(len(run.round().chunks) for _ in range(150))
    assert run.rows > 12 * 140 and chunks < 60
