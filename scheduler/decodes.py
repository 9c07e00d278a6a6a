"""Decodes: which running requests compute their newest token in a step, and the blocks they grow into.

What belongs here: one token for each of them, and drafts after it. Never: prompts, admission, who is preempted for a newcomer.
"""

from collections.abc import Collection, Sequence

from scheduler.chunks import ChunkBuilder
from scheduler.drafting import Drafting
from scheduler.idle import IdleShare
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.tails import Tails
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.preemption import Preemption
from scheduler.request_table import RequestTable
from scheduler.token_budget import choose_decodes, decode_room
from scheduler.types.request import Request, RequestState
from scheduler.types.step import ChunkPhase, Step


class DecodePlanner:
    """Plans the decodes of one scheduler.

    Args:
        budget: tokens of a step.
        pool: provides the blocks.
        tails: gives up what it keeps before anybody is preempted.
        table: the requests.
        transfers: knows of blocks that are on their way.
        policy: decides who goes first.
        preemption: takes blocks from one request for another.
        drafting: proposes tokens to verify.
        chunks: adds chunks to the step.
        idle: says how many idle decodes a step has.

    Attributes:
        held_back: decodes of the newest plan that wait for results, within what decodes may take: prompts leave a token to each.
    """

    def __init__(
        self,
        *,
        budget: int,
        pool: BlockPool,
        tails: Tails,
        table: RequestTable,
        transfers: TransferPlanner,
        policy: SchedulingPolicy,
        preemption: Preemption,
        drafting: Drafting,
        chunks: ChunkBuilder,
        idle: IdleShare,
    ) -> None:
        self._budget = budget
        self._pool = pool
        self._tails = tails
        self._table = table
        self._transfers = transfers
        self._policy = policy
        self._preemption = preemption
        self._drafting = drafting
        self._chunks = chunks
        self._idle = idle
        self.held_back: list[Request] = []

    def grow(self, steady: Sequence[Request] = ()) -> tuple[list[Request], bool]:
        """Give each decode the block its token needs, preempting if there is none.

        If all of them were preempted, others take their turn: each round ends with a decode that runs or with fewer
        running requests, and the last one is never preempted (the pool holds the longest request). So a plan is empty
        only while no running request has a token to compute.

        Args:
            steady: further requests that lack a block, by priority and arrival; where there are any, there are enough for all.

        Returns:
            The decodes that have their block, and whether any request was preempted for one.
        """
        preempted = False
        while (decodes := self._chosen()) or steady:
            needy = [request for request in decodes if self._lacks_block(request)]
            if steady:
                for request in sorted([*needy, *steady], key=_place) if needy else steady:
                    self.take_block(request)
                steady = ()
            else:
                for request in needy:
                    preempted |= self._grow_one(request)
            running = [r for r in decodes if r.state is RequestState.RUNNING]
            if running:
                return [r for r in running if not self._lacks_block(r)], preempted
        return [], preempted

    def add(self, step: Step, decodes: list[Request]) -> None:
        """Add a chunk for each; drafts share what is left of the budget for decodes."""
        if not any(self._drafting.concerns(request) for request in decodes):
            for request in decodes:
                self._chunks.decode(step, request)
            return
        room = min(self._room(step), self._budget - step.tokens) - len(decodes) - len(self.held_back)
        drafts = self._drafting.drafts(decodes, room, self._idle.left(step) - sum(r.idle for r in decodes))
        for request in decodes:
            self._chunks.decode(step, request, drafts.get(request.request_id, ()))

    def add_late(self, step: Step) -> None:
        """Add decodes that waited for results when the step was planned: prompts have left a token to each."""
        self.held_back = []
        if not self._drafting.active:
            return
        left = min(self._budget - step.tokens, self._room(step))
        if left <= 0:
            return
        planned = {chunk.request_id for chunk in step.chunks}
        late, prompts = self._split(planned)
        late = choose_decodes([r for r in late if self._drafting.concerns(r)], prompts, left, self._policy, room=left)
        late = self._idle.decodes(late, prompts, step)
        for request in late:
            if self._lacks_block(request) and self._pool.available:
                self.take_block(request)
        self.add(step, [request for request in late if not self._lacks_block(request)])

    def _room(self, step: Step) -> int:
        """Tokens that further decodes and drafts may take of the step."""
        table = self._table
        prompts = bool(table.waiting) or any(r.prefilling and r.wants_step for r in table.running.values())
        decoded = step.tokens - sum(chunk.length for chunk in step.chunks if chunk.phase is not ChunkPhase.DECODE)
        return decode_room(self._budget, prompts=prompts) - decoded

    def _chosen(self) -> list[Request]:
        """The decodes of a step: as many as there is room for beside the prompts. Notes those that are held back."""
        ready, prompts = self._split()
        if not ready:
            self.held_back = []
            return ready
        room = decode_room(self._budget, prompts=bool(prompts or self._table.waiting))
        self.held_back = []
        if self._drafting.active:
            known = [self._drafting.ready(r) for r in ready]
            self.held_back = [r for r, is_ready in zip(ready, known, strict=True) if not is_ready][:room]
            ready = [r for r, is_ready in zip(ready, known, strict=True) if is_ready]
        chosen = choose_decodes(ready, prompts, self._budget, self._policy, room=room - len(self.held_back))
        return self._idle.decodes(chosen, prompts, beside=self.held_back)

    def _split(self, planned: Collection[str] = ()) -> tuple[list[Request], list[Request]]:
        """Running requests without those that are `planned`: those that decode, and others."""
        running = [r for r in self._table.moving.values() if r.request_id not in planned]
        ready = [r for r in running if r.decodes]
        return ready, [r for r in running if not r.decodes] if len(ready) < len(running) else []

    def _grow_one(self, request: Request) -> bool:
        """Give a request that lacks a block one; whether a request had to be preempted for that."""
        preempted = False
        while request.state is RequestState.RUNNING and self._lacks_block(request):
            if self._pool.available or self._tails.give_up():
                self.take_block(request)
                continue
            victim = self._preemption.victim_for(request)
            if self._transfers.frees_soon or (victim is request and self._transfers.holds_blocks):
                break  # blocks are about to come back: there will be room without preempting anybody else
            self._preemption.preempt(victim, request)
            preempted = True
        return preempted

    def _lacks_block(self, request: Request) -> bool:
        return request.computed + 1 > len(request.block_table) * self._pool.block_size

    def take_block(self, request: Request) -> None:
        """Give a request one more block; there must be one."""
        after = request.block_table[-1] if request.block_table else None
        request.block_table += self._pool.allocate(1, after)


def _place(request: Request) -> tuple[int, int]:
    return request.priority, request.arrival
