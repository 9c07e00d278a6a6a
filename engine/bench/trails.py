"""`python -m engine.bench.trails`: what it costs to write down what becomes of each request, beside what the rest of a plan costs.

A scheduler without a model, under load: 64 sequences run, others wait for a place, and as many come as end. Each run is measured
with the writer and with one that writes nothing, in the thread's own CPU time; of several rounds the fastest counts.
"""

import time
from random import Random

from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.trails import Trails
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult, Step, StepResult

STEPS, ROUNDS = 1000, 3
_WRITERS = (
    "planning",
    "line_stands",
    "passed_over",
    "waits_again",
    "started",
    "chunk",
    "step_ended",
    "preempted",
    "loads",
    "loaded",
)


def silent(trails: Trails) -> None:
    """Have it write nothing."""
    for name in _WRITERS:
        setattr(trails, name, lambda *_, **__: None)


def loaded_scheduler(rng: Random, waiting: int) -> Scheduler:
    """One whose pool has room for some 64 sequences, with so many more in the queue."""
    config = SchedulerConfig(
        context=4096, eos_token_ids=frozenset(), fingerprint="bench", max_running=64, max_step_tokens=512
    )
    scheduler = Scheduler(config, BlockPool(2000, 32))
    for number in range(64 + waiting):
        scheduler.add(_request(number, rng), 0.0)
    return scheduler


def _request(number: int, rng: Random) -> AddRequest:
    prompt = [rng.randrange(50_000) for _ in range(rng.randint(100, 800))]
    sampling = SamplingParams(max_tokens=rng.randint(50, 300), ignore_eos=True)
    return AddRequest(request_id=f"{number}-0", prompt_ids=prompt, sampling=sampling)


def seconds_a_step(waiting: int, *, writes: bool, steps: int = STEPS) -> float:
    """CPU seconds of the scheduler for one step, as the engine's loop asks it."""
    rng = Random(1)
    scheduler = loaded_scheduler(rng, waiting)
    if not writes:
        silent(scheduler._trails)
    requests = [_request(10_000 + number, rng) for number in range(steps)]
    spent, planned, now = 0.0, scheduler.schedule(0.0), 0.0
    for _ in range(steps):
        now += 0.02
        began = time.thread_time()
        step = scheduler.refresh(planned, now)
        planned = scheduler.schedule(now)
        spent += time.thread_time() - began
        result = _result(step)
        began = time.thread_time()
        ended = [output for output in scheduler.update(step, result, now) if output.finish_reason is not None]
        for _ in ended:
            scheduler.add(requests.pop(), now)
        spent += time.thread_time() - began
    return spent / steps


def _result(step: Step) -> StepResult:
    results = [ChunkResult(request_id=each.request_id, token_ids=[5] if each.samples else []) for each in step.chunks]
    return StepResult(step_id=step.step_id, results=results, seconds=0.02)


def main() -> None:
    """Print both, with a short and a long queue."""
    for waiting in (0, 16, 500):
        pairs = [(seconds_a_step(waiting, writes=False), seconds_a_step(waiting, writes=True)) for _ in range(ROUNDS)]
        plain, written = (1e6 * min(each) for each in zip(*pairs, strict=True))
        cost = written - plain
        print(
            f"{waiting:4} wait: a step's plan and results take {plain:6.1f} us, {written:6.1f} us with trails: {cost:+5.1f} us, "
            f"{cost / 50:.3f} % of a step of 5 ms, {cost / 500:.4f} % of one of 50 ms"
        )


if __name__ == "__main__":
    main()
