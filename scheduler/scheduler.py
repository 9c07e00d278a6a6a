"""The scheduler: makes Steps, absorbs their results.

What belongs here: the order in which its parts do their work, and the entry of messages. Never: torch, I/O, a clock (callers
pass `now`), text, HTTP, device memory. A new feature is a small object beside these, not an `if` in `schedule`.

    RequestTable      every request, on its way from waiting to running to its end
    PrefillPlanner    who comes in, and how prompts share what a step has left
    DecodePlanner     who computes its newest token, the blocks for it, and the drafts after it
    IdleShare         how much of a step is left to those that run on what nobody else needs
    Preemption        who gives blocks back
    ChunkBuilder      chunks, and what a plan counts on
    Beams             which sequences of a beam search go on
    ResultProcessor   tokens, errors and loads that have arrived
    SteadyDecodes     rows of simulated steps that are as in the step before
    CalmPlans         plans of simulated steps in which most of these have nothing to say
    FastForward       many equal steps at once
    Trails            what became of each request, for whoever asks why it was slow

Step N+1 is planned while step N runs, so a plan counts on results that do not exist yet: a token *in flight*. What the results
change afterwards (a request has ended) is corrected by `refresh`, before the step starts.
"""

from collections.abc import Callable, Sequence
from itertools import count

from scheduler.admission import Admission
from scheduler.beams.groups import Beams
from scheduler.chunks import ChunkBuilder
from scheduler.decodes import DecodePlanner
from scheduler.drafting import Drafter, Drafting
from scheduler.drawing import draw_map
from scheduler.idle import IdleShare
from scheduler.integrity import check_requests
from scheduler.kv.block_journal import BlockJournal
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tails import Tails
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.aging import Aging
from scheduler.policies.base import SchedulingPolicy
from scheduler.policies.factory import make_policy
from scheduler.preemption import Preemption
from scheduler.prefills import PrefillPlanner
from scheduler.request_table import RequestTable
from scheduler.results import ResultProcessor
from scheduler.skipping.calm_plans import CalmPlans
from scheduler.skipping.fast_forward import FastForward
from scheduler.skipping.parts import SchedulerParts
from scheduler.skipping.steady_decodes import SteadyDecodes
from scheduler.trails import Trails
from scheduler.types.block_changes import BlockChanges
from scheduler.types.block_hash import root_hash
from scheduler.types.config import SchedulerConfig
from scheduler.types.engine_map import EngineMap
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, RequestTimes
from scheduler.types.request import Request
from scheduler.types.step import Chunk, Step, StepResult
from scheduler.types.transfers import TransferResult
from scheduler.validation import check_request


class Scheduler:
    """Continuous batching by token budget over one `BlockPool` and whatever tiers lie below it.

    Args:
        config: fixed for the scheduler's life.
        pool: the device's.
        transfers: plans transfers to and from the tiers below; None: there are no tiers.
        policy: decides who goes first; None: the policy that `config.scheduling` names.
        drafter: proposes tokens that steps verify; None: each decode brings one token.
        trails: writes down what becomes of requests; None: they all have a trail of their own.
        worker_depth: steps that the worker takes at once. If it is one, the next is planned meanwhile, so that two are open.

    Attributes:
        steady: sequences whose rows have no chunks: none, unless a simulation has them carried.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        transfers: TransferPlanner | None = None,
        policy: SchedulingPolicy | None = None,
        *,
        drafter: Drafter | None = None,
        trails: Trails | None = None,
        worker_depth: int = 1,
    ) -> None:
        self.config = config
        self.pool = pool
        self.stats = stats = EngineStats(blocks_total=pool.blocks)
        self._open_steps = worker_depth + (worker_depth == 1)
        self._policy = policy = policy or make_policy(config)
        self._cache = cache = PrefixCache(pool)
        self._tails = tails = Tails(pool)
        self.transfers = transfers = transfers or TransferPlanner(pool)
        self._drafting = drafting = Drafting(drafter, pool, config.context)
        self._trails = trails = trails or Trails()
        self._table = table = RequestTable(
            waiting=policy.make_queue(config.prefix_lookahead, cache),
            pool=pool,
            cache=cache,
            tails=tails,
            transfers=transfers,
            policy=policy,
            drafting=drafting,
            trails=trails,
            stats=stats,
        )
        self._chunks = chunks = ChunkBuilder(cache, policy, trails, stats)
        self._results = results = ResultProcessor(
            config=config,
            pool=pool,
            cache=cache,
            transfers=transfers,
            table=table,
            chunks=chunks,
            drafting=drafting,
            trails=trails,
            stats=stats,
        )
        parts = SchedulerParts(config, pool, table, cache, transfers, policy, drafting, chunks, stats)
        self.steady = SteadyDecodes(parts)
        self._plan_with(parts)
        self._fast_forward = FastForward(parts, self.steady, self._decodes.take_block)
        self._aging = Aging(table.waiting, config.priority_aging, config.max_running)
        self._journal: BlockJournal | None = None
        self._arrivals = arrivals = count()
        self._beams = Beams(table, tails, results, config.eos_token_ids, arrivals)
        self._next_step = 0

    def _plan_with(self, parts: SchedulerParts) -> None:
        """Make the parts that plan."""
        config, pool, cache, transfers = self.config, self.pool, self._cache, self.transfers
        table, policy, chunks, trails = self._table, self._policy, self._chunks, self._trails
        idle = IdleShare(config.idle_tokens, table)
        admission = Admission(
            config=config,
            pool=pool,
            cache=cache,
            tails=self._tails,
            transfers=transfers,
            policy=policy,
            trails=trails,
            running=table.running,
            idle=idle,
        )
        preemption = Preemption(
            slots=config.max_running,
            pool=pool,
            cache=cache,
            transfers=transfers,
            table=table,
            admission=admission,
            policy=policy,
            steady=self.steady,
            trails=trails,
            stats=self.stats,
        )
        self._prefills = PrefillPlanner(
            config=config,
            table=table,
            cache=cache,
            transfers=transfers,
            policy=policy,
            admission=admission,
            preemption=preemption,
            chunks=chunks,
            trails=trails,
            idle=idle,
        )
        self._decodes = DecodePlanner(
            budget=config.max_step_tokens,
            pool=pool,
            tails=self._tails,
            table=table,
            transfers=transfers,
            policy=policy,
            preemption=preemption,
            drafting=parts.drafting,
            chunks=chunks,
            idle=idle,
        )
        self._calm = CalmPlans(parts, self.steady, admission, self._decodes.take_block, trails)

    # --- requests come and go ---

    def add(self, message: AddRequest, now: float, names: Sequence[bytes] = ()) -> None:
        """Queue a request. One with `generated_ids` continues after them.

        Args:
            message: the request.
            now: the time.
            names: hashes of its leading blocks, also of those that its answer will fill, from a caller who knows all texts and need
                not hash them: equal exactly where contents are, and nobody else's are what its answer fills. Others are computed.

        Raises:
            RequestTooLong: prompt plus max_tokens exceeds the context; the message has both numbers.
            ValueError: the request has nothing to compute, asks for what the engine lacks, or its id is in use.
        """
        check_request(message, self.config)
        if message.request_id in self._table.open or message.request_id in self._beams:
            raise ValueError(f"request id {message.request_id!r} is in use")
        if message.beams is None:
            self._queue(message, now, names)
        elif (first := self._beams.gather(message)) is not None:
            self._beams.begin(self._queue(first, now))

    def _queue(self, message: AddRequest, now: float, names: Sequence[bytes] = ()) -> Request:
        request = Request(
            request_id=message.request_id,
            prompt_ids=message.prompt_ids,
            sampling=message.sampling,
            priority=message.priority,
            own_priority=message.own_priority,
            arrival=next(self._arrivals),
            root=root_hash(self.config.fingerprint, message.cache_salt, self.config.adapters.get(message.adapter, "")),
            times=RequestTimes(queued=now, scheduled=now),
            tenant=message.tenant,
            weight=message.weight,
            adapter=message.adapter,
            produces=message.produces,
            pair_start=message.pair_start,
            generated_ids=message.generated_ids,
            hand_over=message.hand_over,
            names=names,
        )
        self._table.add(request)
        if message.kv_wait_seconds and request.reads_cache:
            request.expect_tail(self.pool.block_size)
            self.transfers.expect(request, self._cache.usable_hashes(request), now + message.kv_wait_seconds)
        if message.from_tiers:
            tiers = self.transfers.tiers
            self.pool.drop(key for key in self._cache.usable_hashes(request) if tiers.holder(key) is not None)
        if message.pin_seconds:
            until = now + message.pin_seconds
            self.transfers.pin(self._cache.pin(request, until), until)
        return request

    def abort_all(self, now: float) -> list[Output]:
        """End all requests at once."""
        names = [*self._beams.names(), *self._table.open]
        return [output for name in names for output in self.abort(name, now)]

    def abort(self, request_id: str, now: float) -> list[Output]:
        """End a request at once; its blocks are released, the full ones stay cached. All of a beam search end together.

        Returns:
            The last outputs; none if it is unknown or has ended.
        """
        if request_id in self._beams:
            return self._beams.abort(request_id, now)
        self.steady.leave(request_id)
        request = self._table.open.get(request_id)
        return [] if request is None else [self._table.finish(request, FinishReason.ABORT, now)]

    @property
    def has_work(self) -> bool:
        """Whether any request has not finished."""
        return bool(self._table.open)

    @property
    def idle(self) -> bool:
        """Whether there is no work, no news for the worker and nothing to transfer."""
        return not self._table.open and not self._table.retired and not self.transfers.busy

    @property
    def transferring(self) -> bool:
        """Whether the result of a transfer is still to come."""
        return self.transfers.in_flight

    @property
    def expecting(self) -> bool:
        """Whether a request waits for what another engine saves to a tier that both share."""
        return len(self.transfers.expected) > 0

    # --- plan ---

    def schedule(self, now: float) -> Step:
        """Plan the next step. It has no chunks if nothing can run before results arrive.

        First, room is made for requests that may preempt others. Decodes go first (one token each, and drafts), prompts share
        what is left, and new requests are admitted to that share.
        """
        step = self.steady.step(self._next_step)
        self._next_step += 1
        self._chunks.published_by.clear()
        self._trails.planning(now)
        self.pool.eviction.expire(now)
        self.transfers.expire(now)
        self.transfers.expected.look(now)
        self._aging.plan(self._table.open.values(), now)
        if not self._calm.plan(step, now):
            self._prefills.make_room(now)
            decodes, preempted = self._decodes.grow(self.steady.plan(step))
            if not preempted:
                self.transfers.plan_saves(self._table.running.values())
            self._decodes.add(step, decodes)
            self._prefills.add(step, now, admit=not preempted, held_back=self._decodes.held_back)
            self.steady.planned(step, decodes)
        step.retired = self._table.take_retired()
        step.transfers += self.transfers.take()
        return step

    def refresh(self, step: Step, now: float) -> Step:
        """Bring a planned step up to date just before it runs.

        Chunks whose request has ended are removed; requests that arrived after the plan was made get what is left of the
        budget, so that they need not wait for a whole step; a plan that became empty is made anew.
        """
        if self._calm.needs_nothing(step):
            return step
        running = self._table.running
        step.chunks = [chunk for chunk in step.chunks if self._still_runs(chunk)]
        if step.chunks or step.tokens:
            # The chunk of an ended request writes to blocks that are no longer held: none is given away before it has run.
            self._trails.planning(now)
            orphaned = any(chunk.request_id not in running for chunk in step.chunks)
            self.transfers.expected.look(now)
            if not orphaned:
                self._decodes.add_late(step)
            self._prefills.add(step, now, admit=not orphaned)
            step.transfers += self.transfers.take()
            return step
        fresh = self.schedule(now)
        fresh.new = step.new + fresh.new
        fresh.retired = step.retired + fresh.retired
        fresh.transfers = step.transfers + fresh.transfers
        return fresh

    def put_off(self, step: Step) -> None:
        """The step has nothing to compute and is not run. Sequences it would announce have ended; others are retired later."""
        never_sent = {new.request_id for new in step.new}
        self._table.retired[:0] = [name for name in step.retired if name not in never_sent]

    def _still_runs(self, chunk: Chunk) -> bool:
        """Whether a chunk stays. One on whose block others may already build does, even if its request has ended."""
        return chunk.request_id in self._table.running or chunk.request_id in self._chunks.published_by

    # --- results ---

    def update(self, step: Step, result: StepResult, now: float) -> list[Output]:
        """Absorb the results of a step. Those of requests that have ended meanwhile are dropped."""
        self.stats.steps += 1
        self._policy.on_step(step, result)
        self.transfers.on_step(step, result.seconds)
        self._trails.step_ended(step, result, self._table.open, now)
        self._drafting.observe(step, result)
        results = self.steady.absorb(step, result.results)
        outputs = [self._results.absorb(chunk, brought, now) for chunk, brought in results]
        return self._beams.absorb([output for output in outputs if output is not None], now)

    def absorb_transfer(self, result: TransferResult, now: float) -> None:
        """Absorb the result of a transfer. May be called at any time after the step that carried it has started."""
        self._results.on_loads_done(self.transfers.absorb(result), now)

    def fail(self, steps: Sequence[Step], planned: Step | None, error: str, now: float) -> list[Output]:
        """Whole steps failed, the later ones because of the first: their requests end with an error, the rest is computed anew.

        Which KV they wrote is unknown, so no content may be reused, and a step that was planned on top of them must not run.
        """
        table, outputs = self._table, list[Output]()
        self.steady.dissolve()
        for chunk in (chunk for step in steps for chunk in step.chunks):
            request = table.open.get(chunk.request_id)
            if request is not None:
                output = table.finish(request, FinishReason.ERROR, now)
                output.error = error
                outputs.append(output)
        outputs = self._beams.absorb(outputs, now)
        self._tails.give_up()
        for chunk in planned.chunks if planned else []:
            if chunk.request_id in table.open:
                self._results.on_chunk_done(table.open[chunk.request_id], chunk)
        unstarted = [*steps[1:], *([planned] if planned else [])]
        table.retract_announcements(steps[0], *unstarted)
        canceled = self.transfers.cancel([each for step in unstarted for each in step.transfers])
        self._results.on_loads_done(canceled, now)
        for request in list(table.running.values()):
            table.put_back(request)
        self.pool.drop_contents()
        return outputs

    # --- simulation ---

    def steady_steps(self, planned: Step) -> int:
        """Number of steps that can be skipped from here, between `update` and `refresh` (`scheduler.skipping`)."""
        return self._fast_forward.steady_steps(planned)

    def fast_forward(self, planned: Step, steps: int, token_of: Callable[[str], int]) -> Step:
        """Do what `steps` rounds of `refresh(planned)`, `schedule` and `update` would do; returns the plan for the next step.

        Args:
            planned: the plan for the step after the last one whose results are in.
            steps: at least 1, at most `steady_steps(planned)`.
            token_of: the token id that the steps sample for a request.
        """
        after = self._fast_forward.run(planned, steps, token_of)
        retired = self._table.take_retired()
        if steps == 1:
            after.retired = retired
        self._next_step += steps
        return after

    # --- observation ---

    def publish_blocks(self, publish: bool) -> None:
        """From now on keep a record of which contents come and go, beginning with those that are there; or no longer."""
        self._journal = BlockJournal() if publish else None
        for tier in self.transfers.tiers:
            tier.publish_to(self._journal)
        self.pool.publish_to(self._journal)

    def block_changes(self) -> BlockChanges | None:
        """Contents that came and went and were not told yet, not all at once; None if there are none, or nobody asked."""
        return None if self._journal is None else self._journal.take()

    def snapshot(self) -> EngineStats:
        """The stats with gauges brought up to date."""
        self.stats.running = len(self._table.running)
        self.stats.running_idle = self._table.idle_running
        self.stats.waiting = len(self._table.waiting)
        self.stats.blocks_used = self.pool.used
        self.stats.blocks_cached = self.pool.cached
        self.stats.blocks_free = self.pool.free
        self.stats.tiers = dict(self.transfers.snapshot())
        return self.stats

    def draw_map(self, now: float) -> EngineMap:
        """What it does at this moment, for people who watch. Takes a time that grows with the number of blocks."""
        return draw_map(self._table, self.pool, self.transfers, self.snapshot(), now)

    def check_integrity(self) -> None:
        """Compare all books with each other.

        Raises:
            IntegrityError: names the first contradiction.
        """
        table = self._table
        self.steady.settle()
        held = self.transfers.held()
        held += (request.block_table for request in table.running.values())
        copied = [[request.copied] for request in table.running.values() if request.copied is not None]
        self.pool.check_integrity(held, copied + self._tails.held())
        self.transfers.check_integrity()
        self.transfers.expected.check_integrity(request.request_id for request in table.waiting)
        check_requests(table.open, table.running, table.waiting, self.pool.block_size, self._open_steps)
        self._cache.pending.check_integrity(table.running)
