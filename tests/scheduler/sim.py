"""The engine's loop in one thread, one `tick` at a time: over the worker without a model, or a real one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Protocol

from scheduler.drafting import Drafter
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import Eviction, Lru
from scheduler.kv.tiers.save_planner import Preemption
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.router.block_index import BlockIndex
from scheduler.scheduler import Scheduler
from scheduler.types.beams import BeamParams, EarlyStopping
from scheduler.types.block_hash import BlockKey
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, FinishReason, Output
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Step, StepResult
from scheduler.types.transfers import DEVICE, TierChanges, Transfer, TransferResult
from tests.scheduler.sim_worker import EOS, SimStore, SimTransferWorker, SimWorker, expected, searched


class Pending(Protocol):
    def result(self) -> StepResult: ...


class Worker(Protocol):
    def run(self, step: Step) -> StepResult: ...

    def submit(self, step: Step) -> Pending: ...


class TransferWorker(Protocol):
    def start(self, transfers: list[Transfer]) -> None: ...

    def finished(self) -> list[TransferResult]: ...

    def changes(self) -> list[tuple[str, TierChanges]]: ...

    def returned(self) -> Sequence[tuple[str, Sequence[tuple[BlockKey, int]]]]: ...

    def lost(self) -> list[str]: ...


class Engine:
    """The engine's loop with the plan one step ahead, as the real one has it, one `tick` at a time."""

    def __init__(
        self,
        *,
        blocks: int,
        block_size: int = 4,
        caching: bool = True,
        worker: Worker | None = None,
        eos: frozenset[int] = frozenset({EOS}),
        tiers: dict[str, int]
        | Callable[[BlockPool, Worker], tuple[TransferPlanner, TransferWorker | None]]
        | None = None,
        preemption: Preemption = "swap",
        policy: SchedulingPolicy | None = None,
        seed: int = 0,
        depth: int = 1,
        drafter: Drafter | None = None,
        **config: object,
    ) -> None:
        context = int(config.pop("context", blocks * block_size))  # type: ignore[call-overload]
        self.config = SchedulerConfig(
            context=context,
            eos_token_ids=eos,
            fingerprint="sim",
            **config,  # type: ignore[arg-type]
        )
        pool = BlockPool(blocks, block_size, caching=caching)
        self.worker = worker or SimWorker(blocks, block_size)
        self.transfer_worker: TransferWorker | None = None
        if callable(tiers):
            below, self.transfer_worker = tiers(pool, self.worker)
        else:
            sizes = tiers or {}
            indices = [TierIndex(tier, size, 1, Eviction(Lru(), size)) for tier, size in sizes.items()]
            below = TransferPlanner(pool, indices, preemption=preemption)
            if isinstance(self.worker, SimWorker):
                stores = {tier: SimStore(size) for tier, size in sizes.items()}
                self.transfer_worker = SimTransferWorker(self.worker, stores, Random(seed))
        self.scheduler = Scheduler(self.config, pool, below, policy, drafter=drafter, worker_depth=depth)
        self.scheduler.publish_blocks(True)
        self.told = BlockIndex()
        self.drafts = drafter is not None
        self.steps = 0
        self.planned: Step | None = None
        self.depth = depth  # steps that the worker may have at once
        self.flights: list[tuple[Step, Pending]] = []
        rng = Random(seed)
        if isinstance(self.worker, SimWorker) and depth > 1:
            self.worker.late = lambda: rng.random() < 0.5
        self.now = 0.0
        self.outputs: dict[str, list[int]] = {}
        self.ends: dict[str, Output] = {}
        self.prompt_logprobs: dict[str, list[int]] = {}
        self.requests: dict[str, AddRequest] = {}
        self.after_step: Callable[[Step], None] = lambda step: None
        self.stalled: Callable[[], None] = lambda: None  # nothing can run before a transfer ends

    def add(
        self,
        request_id: str,
        prompt: list[int],
        *,
        priority: int = 0,
        own_priority: int = 0,
        salt: str = "",
        tenant: str = "",
        weight: float = 1.0,
        pin_seconds: float = 0.0,
        generated: Sequence[int] = (),
        adapter: str = "",
        beams: BeamParams | None = None,
        **sampling: object,
    ) -> None:
        params = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, **sampling})  # type: ignore[arg-type]
        message = AddRequest(
            request_id=request_id,
            prompt_ids=prompt,
            sampling=params,
            priority=priority,
            own_priority=own_priority,
            cache_salt=salt,
            tenant=tenant,
            weight=weight,
            pin_seconds=pin_seconds,
            generated_ids=list(generated),
            adapter=adapter,
            beams=beams,
        )
        self.submit(message)

    def search(
        self,
        name: str,
        prompt: list[int],
        width: int,
        *,
        answers: int | None = None,
        penalty: float = 1.0,
        early: EarlyStopping = "likely",
        **options: Any,
    ) -> None:
        """Add all sequences that a beam search answers."""
        answers = answers or width
        for rank in range(answers):
            beams = BeamParams(
                group=name, rank=rank, answers=answers, width=width, length_penalty=penalty, early_stopping=early
            )
            self.add(f"{name}.{rank}", prompt, beams=beams, **options)

    def resume(self, message: AddRequest, generated: Sequence[int]) -> None:
        """Go on with what another engine began."""
        self.submit(replace(message, generated_ids=list(generated)))

    def submit(self, message: AddRequest) -> None:
        self.scheduler.add(message, self.now)
        self.requests[message.request_id] = message
        self.outputs[message.request_id] = []
        self.prompt_logprobs[message.request_id] = []

    def abort(self, request_id: str) -> None:
        self.absorb(self.scheduler.abort(request_id, self.now))

    def tick(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Run the planned step; while it "runs", plan the next one, then do what comes `meanwhile`."""
        if self.depth > 1:
            self.tick_ahead(meanwhile)
            return
        self.now += 1
        self.absorb_moves()
        step = self.next_step()
        if self.transfer_worker is not None:
            self.transfer_worker.start(step.transfers)
        if not step.chunks and self.waits:
            self.scheduler.put_off(step)
            meanwhile()
            self.stalled()
            return
        assert step.chunks or not self.scheduler.has_work, "requests wait and nothing can run"
        self.planned = self.scheduler.schedule(self.now)
        assert self.planned.chunks or not self.could_run(), "the plan is empty and a running request could run"
        meanwhile()
        self.absorb_moves()
        result = self.worker.run(step)
        self.absorb(self.scheduler.update(step, result, self.now))
        self.scheduler.check_integrity()
        self.steps += 1
        self.after_step(step)

    def tick_ahead(self, meanwhile: Callable[[], None]) -> None:
        """The same where the worker is given a step before the one before has ended."""
        self.now += 1
        self.absorb_moves()
        if not self.fill():
            meanwhile()
            self.stalled()
            return
        meanwhile()
        self.absorb_moves()
        step, pending = self.flights.pop(0)
        self.absorb(self.scheduler.update(step, pending.result(), self.now))
        self.scheduler.check_integrity()
        if self.flights:
            self.start_moves(self.flights[0][0])
        self.steps += 1
        self.after_step(step)

    def fill(self) -> bool:
        """Give the worker all the steps it takes. False if nothing can run before a transfer ends."""
        while len(self.flights) < self.depth:
            step = self.next_step()
            if not step.chunks and self.flights:
                self.planned = step
                return True
            if not self.flights:
                self.start_moves(step)
            if not step.chunks and self.waits:
                self.scheduler.put_off(step)
                return False
            assert step.chunks or not self.scheduler.has_work, "requests wait and nothing can run"
            self.flights.append((step, self.worker.submit(step)))
        return True

    @property
    def waits(self) -> bool:
        """Whether something may come of a transfer, perhaps another engine's."""
        return self.scheduler.transferring or self.scheduler.expecting

    def start_moves(self, step: Step) -> None:
        if self.transfer_worker is not None:
            self.transfer_worker.start(step.transfers)

    def could_run(self) -> bool:
        """Whether a running request has a token to compute, and neither waits for blocks on their way in or out."""
        if self.scheduler.transfers.holds_blocks:
            return False
        running = self.scheduler._table.running.values()
        waits = (request.loading or (self.drafts and request.in_flight) for request in running)
        return any(request.wants_step and not wait for request, wait in zip(running, waits, strict=True))

    def absorb_moves(self) -> None:
        if self.transfer_worker is not None:
            for result in self.transfer_worker.finished():
                self.scheduler.absorb_transfer(result, self.now)
            changed = self.transfer_worker.changes()
            for name, kept in self.transfer_worker.returned():
                self.scheduler.transfers.take_up(name, kept)
            for name, changes in changed:
                self.scheduler.transfers.follow(name, changes)
            for name in self.transfer_worker.lost():
                self.scheduler.transfers.tiers.mark_lost(name)
            self.scheduler.check_integrity()

    def fail_step(self) -> None:
        """The worker raises in the middle of a step: its requests end with an error, and nobody expects tokens of them."""
        self.now += 1
        if self.depth > 1:
            self.fill()
            steps = [step for step, _ in self.flights]
            for _, pending in self.flights:
                pending.result()
            self.flights.clear()
        else:
            steps = [self.next_step()]
            self.start_moves(steps[0])
            self.planned = self.scheduler.schedule(self.now)
        failed = self.scheduler.fail(steps, self.planned, "injected", self.now) if steps else []
        self.planned = None
        for output in failed:
            del self.requests[output.request_id]
        self.absorb(failed)

    def next_step(self) -> Step:
        step, self.planned = self.planned, None
        return self.scheduler.schedule(self.now) if step is None else self.scheduler.refresh(step, self.now)

    def absorb(self, outputs: list[Output]) -> None:
        for output in outputs:
            assert output.request_id not in self.ends, "one terminal event a request"
            self.outputs[output.request_id] += output.token_ids
            self.prompt_logprobs[output.request_id] += [entry.token_id for entry in output.prompt_logprobs]
            if output.finish_reason is not None:
                self.ends[output.request_id] = output

    def drain(self, limit: int = 5000) -> None:
        for _ in range(limit):
            news = self.planned is not None and (self.planned.chunks or self.planned.retired)
            if self.scheduler.idle and not self.flights and not news:
                break
            self.tick()
        assert not self.scheduler.has_work, f"not drained after {limit} steps"
        self.scheduler.check_integrity()
        self.check_told()

    def check_told(self) -> None:
        """Whoever was told which blocks came and went knows what is there."""
        while (changes := self.scheduler.block_changes()) is not None:
            self.told.change(changes)
        told: dict[str, set[bytes]] = {}
        for tier, name, _ in self.told.contents():
            told.setdefault(tier, set()).add(name)
        assert told.pop(DEVICE, set()) == set(self.scheduler.pool.contents())
        for index in self.scheduler.transfers.tiers:
            names = told.pop(index.name, set())
            assert set(index.contents()) <= names and all(index.knows(name) for name in names)
        assert not any(told.values()), "a tier that is lost"

    def check_outputs(self) -> None:
        """Every request that ran to its end has exactly the tokens it would have alone."""
        for request_id, message in self.requests.items():
            end = self.ends[request_id]
            want = expected(message.prompt_ids, message.sampling, self.config.context, message.adapter)
            want = want[len(message.generated_ids) :]
            if message.beams is not None:
                want = searched(message.prompt_ids, message.sampling, message.beams)[message.beams.rank]
            if end.finish_reason is FinishReason.ABORT:
                assert self.outputs[request_id] == want[: len(self.outputs[request_id])]
                continue
            assert self.outputs[request_id] == want, request_id
            if message.sampling.prompt_logprobs is not None:
                sent_before = bool(message.generated_ids)  # by the engine that began it
                assert self.prompt_logprobs[request_id] == ([] if sent_before else message.prompt_ids[1:])
