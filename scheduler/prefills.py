"""Prompts: who comes in, and how the tokens of a step that decodes leave are shared.

What belongs here: admitted requests and the chunks of prompts. Never: decodes, the conditions of admission.
"""

from collections.abc import Collection, Iterator

from scheduler.admission import Admission
from scheduler.chunks import ChunkBuilder
from scheduler.idle import IdleShare
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.preemption import Preemption
from scheduler.request_table import RequestTable
from scheduler.token_budget import splitter
from scheduler.trails import Trails
from scheduler.types.config import SchedulerConfig
from scheduler.types.request import Request
from scheduler.types.step import Step
from scheduler.types.trail import WaitCause


class PrefillPlanner:
    """Plans the prompts of one scheduler.

    Args:
        config: the scheduler's.
        table: the requests.
        cache: knows whose prefix is resident.
        transfers: knows of blocks that are on their way.
        policy: decides who goes first.
        admission: gives newcomers their blocks.
        preemption: takes blocks from others for them.
        chunks: adds chunks to the step.
        trails: writes down why nobody comes in.
        idle: says how much idle prompts have of a step.
    """

    def __init__(
        self,
        *,
        config: SchedulerConfig,
        table: RequestTable,
        cache: PrefixCache,
        transfers: TransferPlanner,
        policy: SchedulingPolicy,
        admission: Admission,
        preemption: Preemption,
        chunks: ChunkBuilder,
        trails: Trails,
        idle: IdleShare,
    ) -> None:
        self._config = config
        self._split = splitter(config.whole_prompts)
        self._table = table
        self._cache = cache
        self._transfers = transfers
        self._policy = policy
        self._admission = admission
        self._preemption = preemption
        self._chunks = chunks
        self._trails = trails
        self._idle = idle

    def make_room(self, now: float) -> None:
        """Let the first of the queue in at the cost of running requests, as long as it may preempt them.

        No more come in than a step has tokens for: the others would hold blocks and compute nothing.
        """
        table, budget = self._table, self._config.max_step_tokens
        while (
            budget > 0
            and not self._transfers.frees_soon
            and not self._policy.is_stable(table.waiting, table.running.values())
        ):
            newcomer = self._admission.first_in_need(self._line())
            if newcomer is None:
                return
            victims = self._preemption.victims_of(newcomer)
            for victim in victims:
                self._preemption.preempt(victim, newcomer)
            if not victims or not self._admission.admit([newcomer], [], len(table.running), budget):
                return
            table.start(newcomer, now)
            budget -= newcomer.remaining

    def add(self, step: Step, now: float, *, admit: bool, held_back: Collection[Request] = ()) -> None:
        """Share the step's remaining tokens among prompts that have no chunk in it yet, those of newcomers included.

        Decodes that are held back until results are in get a token each: it is left to them.
        """
        budget = self._config.max_step_tokens - step.tokens - len(held_back)
        running = len(self._table.running)
        if self._table.waiting:
            self._note_closed_door(budget, admit=admit)
        if budget <= 0:
            return
        planned = {chunk.request_id for chunk in step.chunks}
        prefills = [
            r
            for r in self._table.moving.values()
            if r.request_id not in planned and not r.loading and r.prefilling and r.wants_step
        ]
        idle_budget = 0
        if self._table.idle_open and all(r.idle for r in prefills):
            idle_budget = min(budget, self._idle.left(step, held_back))
        if admit and self._table.waiting and running < self._config.max_running:
            admitted = self._admission.admit(self._line(), prefills, running, budget, idle_budget)
            for request in admitted:
                self._table.start(request, now)
            prefills += [request for request in admitted if not request.loading]
        if not prefills:
            return
        others = [r for r in prefills if not r.idle] if self._table.idle_open else prefills
        if not others:
            budget = idle_budget
        shares = self._split((self._policy.need(request) for request in others or prefills), budget)
        for request in prefills:
            if request.arrival in shares:
                self._chunks.prefill(step, request, shares[request.arrival])

    def _note_closed_door(self, budget: int, *, admit: bool) -> None:
        """Write down why nobody is even looked at, if that is so."""
        running = self._table.running.values()
        if len(running) >= self._config.max_running:
            self._trails.line_stands(WaitCause.PLACES, running)
        elif budget <= 0:
            self._trails.line_stands(WaitCause.TOKENS, running)
        elif not admit:
            self._trails.line_stands(WaitCause.BLOCKS, running)

    def _line(self) -> Iterator[Request]:
        return self._policy.admission_order(self._table.waiting, self._table.running.values(), self._cache.warm)
