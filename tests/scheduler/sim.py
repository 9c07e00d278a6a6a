"""A worker and an engine loop without a model: KV is the hash of the prefix it stands for, so every read can be checked.

The token after a prefix is a function of that prefix alone, as with greedy decoding. Whatever the scheduler does (chunks,
sharing, preemption, aborts), each sequence must come out as `expected` says.
"""

from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Protocol
from zlib import crc32

from scheduler.drafting import Drafter
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import Eviction, Lru
from scheduler.kv.save_planner import Preemption
from scheduler.kv.tier_index import TierIndex
from scheduler.kv.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.scheduler import Scheduler
from scheduler.types.block_hash import BlockKey
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, FinishReason, Output
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkResult, Step, StepResult, TokenLogprobs
from scheduler.types.transfers import DEVICE, Transfer, TransferResult

VOCAB = 50
EOS = 7


def prefix_hash(tokens: list[int]) -> int:
    return crc32(bytes(tokens))


def next_token(tokens: list[int]) -> int:
    return prefix_hash(tokens) % VOCAB


def expected(prompt: list[int], sampling: SamplingParams, context: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < sampling.max_tokens and len(tokens) < context:
        tokens.append(next_token(tokens))
        output = len(tokens) - len(prompt)
        stops = (tokens[-1] == EOS and not sampling.ignore_eos) or tokens[-1] in sampling.stop_token_ids
        if stops and output >= sampling.min_tokens:
            break
    return tokens[len(prompt) :]


class Pending(Protocol):
    def result(self) -> StepResult: ...


class Worker(Protocol):
    def run(self, step: Step) -> StepResult: ...

    def submit(self, step: Step) -> Pending: ...


class TransferWorker(Protocol):
    def start(self, transfers: list[Transfer]) -> None: ...

    def finished(self) -> list[TransferResult]: ...


class SimPending:
    """A step that a `SimWorker` has been given, and computes when it likes."""

    def __init__(self, worker: "SimWorker", step: Step) -> None:
        self.worker = worker
        self.step = step
        self.brought: StepResult | None = None

    def result(self) -> StepResult:
        while self.brought is None:
            self.worker.run_next()
        return self.brought


class SimWorker:
    """Runs steps on blocks that hold prefix hashes; fails when a chunk would read KV that is not its prefix's."""

    depth = 1

    def __init__(self, blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.kv: list[list[int | None]] = [[None] * block_size for _ in range(blocks)]
        self.tokens: dict[str, list[int]] = {}
        self.prompt_length: dict[str, int] = {}
        self.sampling: dict[str, SamplingParams] = {}
        self.max_tokens_in_step = 0
        self.last_step = -1
        self.fails = ""  # id of a request whose rows cannot be sampled
        self.given: deque[SimPending] = deque()
        # Whether a step is computed no sooner than its result is asked for.
        self.late: Callable[[], bool] = lambda: False

    def submit(self, step: Step) -> SimPending:
        pending = SimPending(self, step)
        self.given.append(pending)
        while self.given and not self.late():
            self.run_next()
        return pending

    def run_next(self) -> None:
        pending = self.given.popleft()
        pending.brought = self.run(pending.step)

    def run(self, step: Step) -> StepResult:
        assert step.step_id > self.last_step, "steps run in order"
        self.last_step = step.step_id
        self.max_tokens_in_step = max(self.max_tokens_in_step, step.tokens)
        for new in step.new:
            self.tokens[new.request_id] = new.prompt_ids + new.generated_ids
            self.prompt_length[new.request_id] = len(new.prompt_ids)
            self.sampling[new.request_id] = new.sampling
        ids = [chunk.request_id for chunk in step.chunks]
        assert len(set(ids)) == len(ids), "one chunk a request"
        written: set[tuple[int, int]] = set()
        for chunk in step.chunks:
            self._write(chunk, written)
        results = [self._result(chunk) for chunk in step.chunks]
        for request_id in step.retired:
            self.tokens.pop(request_id, None)
        return StepResult(step_id=step.step_id, results=results)

    def _write(self, chunk: Chunk, written: set[tuple[int, int]]) -> None:
        tokens = self.tokens[chunk.request_id] + chunk.draft_ids
        assert chunk.start + chunk.length <= len(tokens), "no token is computed before it is known"
        for position in range(chunk.start, chunk.start + chunk.length):
            slot = (chunk.block_table[position // self.block_size], position % self.block_size)
            assert slot not in written, "two hands write one slot"
            written.add(slot)
            self.kv[slot[0]][slot[1]] = prefix_hash(tokens[: position + 1])

    def _result(self, chunk: Chunk) -> ChunkResult:
        tokens = self.tokens[chunk.request_id]
        end, computed = chunk.start + chunk.length, tokens + chunk.draft_ids
        for position in range(end):
            held = self.kv[chunk.block_table[position // self.block_size]][position % self.block_size]
            assert held == prefix_hash(computed[: position + 1]), f"{chunk.request_id} reads foreign KV at {position}"
        result = ChunkResult(request_id=chunk.request_id)
        if chunk.request_id == self.fails:
            result.error = "injected"
            return result
        if self.sampling[chunk.request_id].prompt_logprobs is not None:
            stop = min(end + 1, self.prompt_length[chunk.request_id])
            result.prompt_logprobs = [
                TokenLogprobs(token_id=tokens[i], logprob=-float(i), rank=1, top=[])
                for i in range(chunk.start + 1, stop)
            ]
        if chunk.samples:
            assert end == len(computed), "only successors of the newest token and of drafts are sampled"
            assert chunk.samples == 1 + len(chunk.draft_ids)
            self._sample(chunk, tokens, result)
        return result

    def _sample(self, chunk: Chunk, tokens: list[int], result: ChunkResult) -> None:
        """As long as the drafts say what is sampled."""
        for draft in [*chunk.draft_ids, None]:
            result.token_ids.append(next_token(tokens))
            if self.sampling[chunk.request_id].logprobs is not None:
                entry = TokenLogprobs(token_id=result.token_ids[-1], logprob=-float(len(tokens)), rank=1, top=[])
                result.logprobs.append(entry)
            tokens.append(result.token_ids[-1])
            if tokens[-1] != draft:
                break


class SimStore:
    """One tier: contents by key, at most so many."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.contents: dict[bytes, list[int | None]] = {}


class SimTransferWorker:
    """Transfers between the worker's blocks and `SimStore`s. A transfer takes as long as it likes; nobody may notice.

    What a save copies is looked at when it starts and again when it ends: they must be equal, or somebody wrote to a block that
    was being read. A load fills its blocks with rubbish first.
    """

    def __init__(self, worker: SimWorker, stores: dict[str, SimStore], rng: Random) -> None:
        self.worker = worker
        self.stores = stores
        self.rng = rng
        self.under_way: list[tuple[Transfer, list[list[int | None]]]] = []
        self.speed = 0.5  # chance that a transfer under way has ended when its result is asked for
        self.broken: set[str] = set()
        self.loss = 0.0  # chance that a content is damaged when it is read
        self.refusal = 0.0  # that one is not kept
        self.blocks_loaded = 0

    def start(self, transfers: list[Transfer]) -> None:
        for transfer in transfers:
            if transfer.target == DEVICE:
                for block in transfer.blocks:
                    self.worker.kv[block] = [-1] * self.worker.block_size
            self.under_way.append((transfer, [list(self.worker.kv[block]) for block in transfer.blocks]))

    def finished(self) -> list[TransferResult]:
        """Results of those that have ended; for each lower tier in the order they came."""
        results: list[TransferResult] = []
        stuck = set[str]()
        for flight in list(self.under_way):
            if flight[0].lower in stuck or self.rng.random() > self.speed:
                stuck.add(flight[0].lower)
                continue
            self.under_way.remove(flight)
            results.append(self.finish(*flight))
        return results

    def finish(self, transfer: Transfer, before: list[list[int | None]]) -> TransferResult:
        store = self.stores[transfer.lower]
        for key in transfer.drops:
            store.contents.pop(key, None)
        if transfer.lower in self.broken:
            return TransferResult(
                transfer_id=transfer.transfer_id, sizes=[0] * len(transfer.block_keys), lost=transfer.lower
            )
        result = TransferResult(transfer_id=transfer.transfer_id, sizes=[], seconds=0.001)
        for index, block_key in enumerate(transfer.block_keys):
            self.transfer_one(transfer, block_key, index, before, result)
        return result

    def transfer_one(
        self,
        transfer: Transfer,
        block_key: BlockKey,
        index: int,
        before: list[list[int | None]],
        result: TransferResult,
    ) -> None:
        if transfer.source == DEVICE:
            held = self.worker.kv[transfer.blocks[index]]
            assert held == before[index], "somebody wrote to a block while it was saved"
            held = held[: len(block_key.token_ids)]
        else:
            source = self.stores[transfer.source].contents
            if self.rng.random() < self.loss:
                source.pop(block_key.hash, None)
            found = source.get(block_key.hash)
            if found is None:
                result.sizes.append(0)
                result.gone.append(block_key.hash)
                return
            held = found
        if transfer.target == DEVICE:
            block = self.worker.kv[transfer.blocks[index]]
            assert block == [-1] * len(block), "somebody wrote to a block while it was loaded"
            block[: len(held)] = held
            self.blocks_loaded += 1
        elif self.rng.random() < self.refusal:
            result.sizes.append(0)
            return
        else:
            target = self.stores[transfer.target]
            target.contents.setdefault(block_key.hash, list(held))
            assert len(target.contents) <= target.blocks, "the tier was given more than it holds"
        result.sizes.append(1)


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
        self.scheduler = Scheduler(self.config, pool, below, policy, drafter=drafter, open_steps=max(2, depth))
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
        salt: str = "",
        tenant: str = "",
        pin_seconds: float = 0.0,
        generated: Sequence[int] = (),
        adapter: str = "",
        **sampling: object,
    ) -> None:
        params = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, **sampling})  # type: ignore[arg-type]
        message = AddRequest(
            request_id=request_id,
            prompt_ids=prompt,
            sampling=params,
            priority=priority,
            cache_salt=salt,
            tenant=tenant,
            pin_seconds=pin_seconds,
            generated_ids=list(generated),
            adapter=adapter,
        )
        self.scheduler.add(message, self.now)
        self.requests[request_id] = message
        self.outputs[request_id] = []
        self.prompt_logprobs[request_id] = []

    def abort(self, request_id: str) -> None:
        output = self.scheduler.abort(request_id, self.now)
        if output is not None:
            self.absorb([output])

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
        if not step.chunks and self.scheduler.transferring:
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
            if not step.chunks and self.scheduler.transferring:
                self.scheduler.put_off(step)
                return False
            assert step.chunks or not self.scheduler.has_work, "requests wait and nothing can run"
            self.flights.append((step, self.worker.submit(step)))
        return True

    def start_moves(self, step: Step) -> None:
        if self.transfer_worker is not None:
            self.transfer_worker.start(step.transfers)

    def could_run(self) -> bool:
        """Whether a running request has a token to compute, and neither waits for blocks on their way in or out."""
        if self.scheduler._transfers.holding:
            return False
        running = self.scheduler._table.running.values()
        waits = (request.loading or (self.drafts and request.in_flight) for request in running)
        return any(request.wants_step and not wait for request, wait in zip(running, waits, strict=True))

    def absorb_moves(self) -> None:
        if self.transfer_worker is not None:
            for result in self.transfer_worker.finished():
                self.scheduler.absorb_transfer(result)
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

    def check_outputs(self) -> None:
        """Every request that ran to its end has exactly the tokens it would have alone."""
        for request_id, message in self.requests.items():
            end = self.ends[request_id]
            want = expected(message.prompt_ids, message.sampling, self.config.context)[len(message.generated_ids) :]
            if end.finish_reason is FinishReason.ABORT:
                assert self.outputs[request_id] == want[: len(self.outputs[request_id])]
                continue
            assert self.outputs[request_id] == want, request_id
            if message.sampling.prompt_logprobs is not None:
                assert self.prompt_logprobs[request_id] == message.prompt_ids[1:]
