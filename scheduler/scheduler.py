"""The scheduler: makes Steps, absorbs their results.

What belongs here: which tokens of which requests run next, who is admitted, who is preempted, when a request ends. Never:
torch, I/O, a clock (callers pass `now`), text, HTTP, device memory. A new feature is a small object beside `Admission`,
`PrefixCache` and `choose_victim`, not an `if` in `schedule`.

Step N+1 is planned while step N runs, so a plan counts on results that are not there yet: a token *in flight*. What the
results change afterwards (a request has ended) is taken out again by `refresh`, before the step starts.
"""

from collections.abc import Callable, Iterator, Sequence

from scheduler.admission import Admission
from scheduler.fast_forward import all_running, leap, steady_steps
from scheduler.integrity import check_requests
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.load_planner import Arrival
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.policies.factory import make_policy
from scheduler.preemption import Room, choose_victim
from scheduler.token_budget import choose_decodes
from scheduler.types.block_hash import root_hash
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, OutputKind, RequestTimes
from scheduler.types.prefill_split import split_prefill
from scheduler.types.request import Request, RequestState
from scheduler.types.step import Chunk, ChunkResult, SequenceInit, Step, StepResult
from scheduler.types.transfers import TransferResult


class RequestTooLong(ValueError):
    """The request could never run: it needs more tokens than fit, even alone."""


class Scheduler:
    """Continuous batching by token budget over one `BlockPool`, and whatever tiers lie below it.

    Its policy is the one that `config.scheduling` names, unless another is given.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        transfers: TransferPlanner | None = None,
        policy: SchedulingPolicy | None = None,
    ) -> None:
        self.config = config
        self.pool = pool
        self.stats = EngineStats(blocks_total=pool.blocks)
        self._requests: dict[str, Request] = {}  # all that have not finished
        self._running: dict[str, Request] = {}
        self._policy = policy or make_policy(config)
        self._cache = PrefixCache(pool)
        self._waiting = self._policy.make_queue(config.prefix_lookahead, self._cache)
        self._transfers = transfers or TransferPlanner(pool)
        self._admission = Admission(config, pool, self._cache, self._transfers, self._policy)
        self._room = Room(config.max_running, pool, self._admission, self._policy)
        self._retired: list[str] = []  # finished since the last plan: the worker may forget them
        self._published_by = set[str]()  # requests with a block published on the strength of the newest plan
        self._next_arrival = 0
        self._next_step = 0

    # --- requests come and go ---

    def add(self, message: AddRequest, now: float) -> None:
        """Queue a request.

        Raises:
            RequestTooLong: prompt plus max_tokens exceeds the context; the message has both numbers.
            ValueError: empty prompt, an id that is in use, or a kind of output that no worker produces yet.
        """
        prompt, output = len(message.prompt_ids), message.sampling.max_tokens
        if prompt + output > self.config.context:
            raise RequestTooLong(
                f"prompt ({prompt} tokens) plus max_tokens ({output}) is {prompt + output}, "
                f"the longest request that fits is {self.config.context}"
            )
        if not message.prompt_ids:
            raise ValueError("the prompt has no tokens")
        if message.request_id in self._requests:
            raise ValueError(f"request id {message.request_id!r} is in use")
        if message.produces is not OutputKind.TOKENS:
            raise ValueError(f"this engine produces {OutputKind.TOKENS}, the request asks for {message.produces}")
        request = Request(
            request_id=message.request_id,
            prompt_ids=message.prompt_ids,
            sampling=message.sampling,
            priority=message.priority,
            arrival=self._next_arrival,
            root=root_hash(self.config.fingerprint, message.cache_salt),
            times=RequestTimes(queued=now, scheduled=now),
            tenant=message.tenant,
        )
        self._policy.on_add(request, self._waiting)
        self._next_arrival += 1
        self._requests[request.request_id] = request
        self._waiting.add(request)
        if message.pin_seconds:
            self._transfers.pin(self._cache.pin(request, now + message.pin_seconds), now + message.pin_seconds)
        self.stats.prompt_tokens += len(request.prompt_ids)

    def abort(self, request_id: str, now: float) -> Output | None:
        """End a request at once; its blocks are free, the full ones stay cached. None if it is not here (any more)."""
        request = self._requests.get(request_id)
        return None if request is None else self._finish(request, FinishReason.ABORT, now)

    @property
    def has_work(self) -> bool:
        """Whether any request has not finished."""
        return bool(self._requests)

    @property
    def idle(self) -> bool:
        """Whether there is neither work nor news for the worker, nor anything to transfer."""
        return not self._requests and not self._retired and not self._transfers.busy

    @property
    def transferring(self) -> bool:
        """Whether the result of a transfer is still to come."""
        return self._transfers.in_flight

    # --- plan ---

    def schedule(self, now: float) -> Step:
        """Plan the next step. It has no chunks when nothing can run before results arrive.

        Room is made for those who may push in. Decodes go first (one token each), prompts share what is left, and new
        requests are admitted to that share.
        """
        step = Step(step_id=self._next_step, chunks=[])
        self._next_step += 1
        self._published_by.clear()
        self.pool.eviction.expire(now)
        self._transfers.expire(now)
        self._make_room(now)
        decodes, preempted = self._grow_decodes()
        if not preempted:
            self._transfers.plan_saves()
        for request in decodes:
            step.chunks.append(self._chunk(request, 1, step))
        self._add_prefills(step, now, admit=not preempted)
        step.retired, self._retired = self._retired, []
        step.transfers += self._transfers.take()
        return step

    def refresh(self, step: Step, now: float) -> Step:
        """Bring a planned step up to date just before it runs.

        Chunks whose request has ended are taken out; requests that arrived after the plan was made get what is left of
        the budget, so that they need not wait for a whole step; a plan that became empty is made anew.
        """
        step.chunks = [chunk for chunk in step.chunks if self._still_runs(chunk)]
        if step.chunks:
            # The chunk of an ended request writes to blocks nobody holds any more: none is given away before it ran.
            orphaned = any(chunk.request_id not in self._running for chunk in step.chunks)
            self._add_prefills(step, now, admit=not orphaned)
            step.transfers += self._transfers.take()
            return step
        fresh = self.schedule(now)
        fresh.new = step.new + fresh.new
        fresh.retired = step.retired + fresh.retired
        fresh.transfers = step.transfers + fresh.transfers
        return fresh

    def put_off(self, step: Step) -> None:
        """The step has nothing to compute and is not run. Those it was to announce have ended; its other news comes again."""
        unborn = {new.request_id for new in step.new}
        self._retired = [name for name in step.retired if name not in unborn] + self._retired

    def _still_runs(self, chunk: Chunk) -> bool:
        """A chunk whose block others may already build on stays: it costs a little and keeps the promise."""
        return chunk.request_id in self._running or chunk.request_id in self._published_by

    def _decodes(self) -> list[Request]:
        """Running requests that lack only their newest token, as many as the step has room for beside the prompts."""
        ready = [r for r in self._running.values() if r.decodes]
        prompts = [r for r in self._running.values() if not r.decodes] if len(ready) < len(self._running) else []
        budget = self.config.max_step_tokens
        return choose_decodes(ready, prompts, len(self._waiting), budget, self._policy)

    def _grow_decodes(self) -> tuple[list[Request], bool]:
        """Give each decode the block its token needs, preempting where there is none. Returns those that run.

        Where all of them were preempted, others take their turn: each round ends with a decode that runs or with fewer
        running requests, and the last one is never preempted (the pool holds the longest request). So a plan is empty
        only while nothing that runs has a token to compute.
        """
        preempted = False
        while decodes := self._decodes():
            preempted |= self._grow(decodes)
            running = [r for r in decodes if r.state is RequestState.RUNNING]
            if running:
                return [r for r in running if not self._lacks_block(r)], preempted
        return [], preempted

    def _grow(self, decodes: list[Request]) -> bool:
        """Whether somebody had to be preempted for it."""
        preempted = False
        for request in decodes:
            while request.state is RequestState.RUNNING and self._lacks_block(request):
                if self.pool.available:
                    after = request.block_table[-1] if request.block_table else None
                    request.block_table += self.pool.allocate(1, after)
                    continue
                victim = choose_victim(
                    self._running.values(), request, self.pool, self._admission.protected, self._policy
                )
                if self._transfers.leaving or (victim is request and self._transfers.holding):
                    break  # blocks are on their way: there will be room without anybody else giving way
                self._preempt(victim)
                preempted = True
        return preempted

    def _lacks_block(self, request: Request) -> bool:
        return request.computed + 1 > len(request.block_table) * self.pool.block_size

    def _add_prefills(self, step: Step, now: float, *, admit: bool) -> None:
        """Share what the step has left among prompts that have no chunk in it yet."""
        budget = self.config.max_step_tokens - step.tokens
        if budget <= 0:
            return
        planned = {chunk.request_id for chunk in step.chunks}
        prefills = [
            r
            for r in self._running.values()
            if r.request_id not in planned and not r.loading and r.prefilling and r.wants_step
        ]
        if admit and self._waiting and len(self._running) < self.config.max_running:
            admitted = self._admission.admit(self._line(), prefills, len(self._running), budget)
            for request in admitted:
                self._start(request, now)
            prefills += [request for request in admitted if not request.loading]
        shares = split_prefill((self._policy.need(request) for request in prefills), budget)
        step.chunks += [self._chunk(r, shares[r.arrival], step) for r in prefills if r.arrival in shares]

    def _chunk(self, request: Request, length: int, step: Step) -> Chunk:
        start = request.computed
        samples = start + length == request.known and request.sampling.max_tokens > 0
        if not request.announced:
            request.announced = True
            step.new.append(
                SequenceInit(request_id=request.request_id, prompt_ids=request.prompt_ids, sampling=request.sampling)
            )
        table = list(request.block_table)
        request.computed += length
        request.in_flight += samples
        request.last_step = step.step_id
        self._count(request, start)
        if self._cache.publish(request):
            self._published_by.add(request.request_id)
        return Chunk(request_id=request.request_id, start=start, length=length, block_table=table, samples=samples)

    def _count(self, request: Request, start: int) -> None:
        """Tokens from `start` to `computed` are planned: some of them again, the others for the first time."""
        if request.high_water > start:
            self.stats.recomputed_tokens += min(request.computed, request.high_water) - start
        if request.computed > request.high_water:
            self._policy.on_tokens(request, max(start, request.high_water), request.computed)
            request.high_water = request.computed

    def _line(self) -> Iterator[Request]:
        return self._policy.in_turn(self._waiting, self._running.values(), self._cache.warm)

    def _start(self, request: Request, now: float) -> None:
        self._waiting.take(request)
        self._policy.on_dequeue(request)
        request.state = RequestState.RUNNING
        self._running[request.request_id] = request
        if not request.started:
            request.started = True
            request.times.scheduled = now
            request.times.cached_tokens = request.computed
            self._transfers.asked(self._cache.asked(request))
            self.stats.prefix_query_tokens += len(request.tokens)
            self.stats.prefix_hit_tokens += request.computed

    # --- preemption ---

    def _make_room(self, now: float) -> None:
        """Let the first of the line in at the cost of running requests, as long as it may push them out.

        No more than a step has tokens for: the others would hold blocks and compute nothing.
        """
        budget = self.config.max_step_tokens
        while (
            budget > 0
            and not self._transfers.leaving
            and not self._policy.is_stable(self._waiting, self._running.values())
        ):
            newcomer = self._admission.first_in_need(self._line())
            if newcomer is None:
                return
            victims = self._room.victims(newcomer, self._running.values())
            for victim in victims:
                self._preempt(victim)
            if not victims or not self._admission.admit([newcomer], [], len(self._running), budget):
                return
            self._start(newcomer, now)
            budget -= newcomer.remaining

    def _preempt(self, request: Request) -> None:
        if self._transfers.swaps() and not request.loading:
            self._swap_out(request)
        self._put_back(request)
        request.preemptions += 1
        request.times.preemptions = request.preemptions
        self.stats.preemptions += 1

    def _swap_out(self, request: Request) -> None:
        """Save what is computed: full blocks under their names, the last one under that of its part."""
        self._transfers.ended(request)  # what was left of an earlier time
        self._cache.publish(request)
        keys, tail = request.block_hashes[: request.published], request.cut_tail(self.pool.block_size)
        self._release(request)
        self._transfers.swap_out(keys, tail)
        self.stats.swapped_out += 1

    def _put_back(self, request: Request) -> None:
        """From running to waiting: its blocks go, its tokens stay."""
        self._release(request)
        request.state = RequestState.WAITING
        self._waiting.add(request)

    def _release(self, request: Request) -> None:
        self._running.pop(request.request_id, None)
        self._cache.pending.drop(request.request_id)
        filling = self._transfers.disown(request)
        self.pool.release([block for block in request.block_table if block not in filling])
        request.block_table = []
        request.computed = request.published = 0

    # --- results ---

    def update(self, step: Step, result: StepResult, now: float) -> list[Output]:
        """Absorb what a step brought. Results of requests that have ended meanwhile are dropped."""
        outputs: list[Output] = []
        self.stats.steps += 1
        self._policy.on_step(step, result.seconds)
        self._transfers.saw_step(step, result.seconds)
        for chunk, brought in zip(step.chunks, result.results, strict=True):
            request = self._requests.get(chunk.request_id)
            if request is None:
                continue
            request.in_flight -= chunk.samples
            output = self._absorb(request, chunk, brought, now)
            if output is not None:
                outputs.append(output)
        return outputs

    def _absorb(self, request: Request, chunk: Chunk, brought: ChunkResult, now: float) -> Output | None:
        if brought.error is not None:
            # Its KV may be what failed it (a NaN spreads to all that follows), be it its own or a prefix it found.
            self.pool.forget(request.block_table, {block for held in self._transfers.held() for block in held})
            self._transfers.forget(request.block_hashes[: len(request.block_table)])
            output = self._finish(request, FinishReason.ERROR, now)
            output.error = brought.error
            return output
        output = Output(request_id=request.request_id)
        if brought.prompt_logprobs:
            output.prompt_logprobs = request.send_logprobs(chunk.start, brought.prompt_logprobs)
        reason: FinishReason | None = None
        if brought.token_id is not None:
            reason = self._absorb_token(request, brought.token_id, now, output)
            if brought.logprobs is not None:
                output.logprobs.append(brought.logprobs)
        elif request.sampling.max_tokens == 0 and chunk.start + chunk.length >= len(request.prompt_ids):
            reason = FinishReason.LENGTH
        if reason is not None:
            final = self._finish(request, reason, now)
            output.finish_reason, output.times = reason, final.times
        return output if output.token_ids or output.prompt_logprobs or reason else None

    def _absorb_token(self, request: Request, token_id: int, now: float, output: Output) -> FinishReason | None:
        request.tokens.append(token_id)
        output.token_ids.append(token_id)
        self.stats.generation_tokens += 1
        if request.times.first_token is None:
            request.times.first_token = now
            output.times = request.times
        is_eos = self.config.eos_token_ids.__contains__
        reason = request.stop_cause(token_id, is_eos, self.config.context)
        if reason is FinishReason.STOP:
            output.stop_token = token_id
        # The KV of this token is in the next step at the earliest. So the last one's block is never published, and an
        # abort must not take out the chunk that a publication rests on.
        if reason is None and request.state is RequestState.RUNNING and self._cache.publish(request):
            self._published_by.add(request.request_id)
        return reason

    def _finish(self, request: Request, reason: FinishReason, now: float) -> Output:
        if request.state is RequestState.WAITING:
            self._waiting.remove(request)
            self._policy.on_dequeue(request)
        self._policy.on_finish(request)
        keys = request.block_hashes[: request.published]
        self._release(request)
        self._transfers.released(keys)
        self._transfers.ended(request)
        request.state = RequestState.FINISHED
        request.times.finished = now
        del self._requests[request.request_id]
        if request.announced:
            self._retired.append(request.request_id)
        return Output(request_id=request.request_id, finish_reason=reason, times=request.times)

    def absorb_transfer(self, result: TransferResult) -> None:
        """Absorb what a transfer brought. May be called at any time after the step that carried it has started."""
        self._absorb_arrivals(self._transfers.absorb(result))

    def _absorb_arrivals(self, arrivals: list[Arrival]) -> None:
        for request, whole in arrivals:
            gained = request.computed - request.published * self.pool.block_size
            self._cache.publish(request)
            if not request.preemptions:
                request.times.cached_tokens += gained
                self.stats.prefix_hit_tokens += gained
            if not whole:  # it starts again from what is there: blocks behind the gap may be others'
                self._put_back(request)

    def fail(self, steps: Sequence[Step], planned: Step | None, error: str, now: float) -> list[Output]:
        """Whole steps failed, the first by itself, the others with it: their requests end with an error, the rest is computed anew.

        Which KV they wrote is unknown, so no content may be reused, and a step that was planned on top of them must not run.
        """
        outputs = []
        for chunk in (chunk for step in steps for chunk in step.chunks):
            request = self._requests.get(chunk.request_id)
            if request is not None:
                output = self._finish(request, FinishReason.ERROR, now)
                output.error = error
                outputs.append(output)
        unstarted = [*steps[1:], *([planned] if planned else [])]
        for chunk in planned.chunks if planned else []:
            if chunk.request_id in self._requests:
                self._requests[chunk.request_id].in_flight -= chunk.samples
        self._retract_announcements(steps[0], *unstarted)
        self._absorb_arrivals(self._transfers.cancel([transfer for step in unstarted for transfer in step.transfers]))
        for request in list(self._running.values()):
            self._put_back(request)
        self.pool.drop_contents()
        return outputs

    def _retract_announcements(self, *steps: Step) -> None:
        """What steps that did not run were to tell the worker is told again."""
        for step in steps:
            self._retired += step.retired
            for new in step.new:
                if new.request_id in self._requests:
                    self._requests[new.request_id].announced = False

    # --- simulation ---

    def steady_steps(self, planned: Step) -> int:
        """How many steps can be leapt from here, between `update` and `refresh`; see `scheduler.fast_forward`."""
        if self._transfers.active or (self._waiting and len(self._running) < self.config.max_running):
            return 0
        if not self._policy.is_stable(self._waiting, self._running.values()):
            return 0
        running = all_running(planned, self._running)
        return steady_steps(planned, running, self.config, self.pool) if running else 0

    def leap(self, planned: Step, steps: int, token_of: Callable[[str], int]) -> Step:
        """What so many rounds of `refresh(planned)`, `schedule` and `update` do; returns the plan for the next step.

        Args:
            planned: the plan for the step after the last whose results are in.
            steps: at most `steady_steps(planned)`.
            token_of: what the steps sample for a request.
        """
        running = all_running(planned, self._running)
        after, self._published_by = leap(
            planned, steps, running=running, pool=self.pool, cache=self._cache, token_of=token_of
        )
        for request in running:
            self._count(request, request.computed - steps)
        if steps == 1:
            after.retired = self._retired
        self._retired = []
        self._next_step += steps
        self.stats.steps += steps
        self.stats.generation_tokens += steps * len(running)
        return after

    # --- observation ---

    def snapshot(self) -> EngineStats:
        """The stats with gauges brought up to date."""
        self.stats.running = len(self._running)
        self.stats.waiting = len(self._waiting)
        self.stats.blocks_used = self.pool.used
        self.stats.blocks_cached = self.pool.cached
        self.stats.blocks_free = self.pool.free
        self.stats.tiers = dict(self._transfers.snapshot())
        return self.stats

    def check_integrity(self) -> None:
        """Compare all books with each other.

        Raises:
            IntegrityError: naming the first contradiction.
        """
        tables = self._transfers.held()
        tables += (request.block_table for request in self._running.values())
        self.pool.check_integrity(tables)
        self._transfers.check_integrity()
        check_requests(self._requests, self._running, self._waiting, self.pool.block_size)
        self._cache.pending.check_integrity(self._running)
