"""Plans of simulated steps that hold nothing but decodes and prompts of which nobody may push out another.

`Scheduler.schedule` asks each of its parts in turn, and in such a step most of them have nothing to say: there are no tiers, no
drafts, no idle requests, no ages, no trails, enough blocks and tokens for all decodes, and one policy that compares priority and
arrival. What is left is done here, by the same parts in the same order: rows without chunks, blocks for decodes, chunks, newcomers,
shares of prompts. A test compares the two, field by field.

What belongs here: that equivalence, and nothing that decides. A rule that is added to `Scheduler.schedule` or `refresh` must be
mirrored in `_is_calm` or `needs_nothing` as a condition, so that no step is planned here in which it could matter.
"""

from collections.abc import Callable, Iterable

from scheduler.admission import Admission
from scheduler.policies.base import SchedulingPolicy
from scheduler.skipping.parts import SchedulerParts
from scheduler.skipping.steady_decodes import SteadyDecodes, SteadyStep
from scheduler.token_budget import decode_room, split_prefill
from scheduler.trails import NoTrails, Trails
from scheduler.types.request import Request
from scheduler.types.step import Step


class CalmPlans:
    """Plans calm steps of one scheduler.

    Args:
        parts: of the scheduler.
        steady: sequences without chunks.
        admission: gives newcomers their blocks.
        take_block: gives a request one more block.
        trails: if anybody asks for them, no step is planned here.
    """

    def __init__(
        self,
        parts: SchedulerParts,
        steady: SteadyDecodes,
        admission: Admission,
        take_block: Callable[[Request], None],
        trails: Trails,
    ) -> None:
        self._pool = parts.pool
        self._table = parts.table
        self._cache = parts.cache
        self._policy = parts.policy
        self._chunks = parts.chunks
        self._steady = steady
        self._admission = admission
        self._take_block = take_block
        self._budget = parts.config.max_step_tokens
        self._most = parts.config.max_running
        self._room = decode_room(self._budget, prompts=True)
        self._possible = (
            type(parts.policy) is SchedulingPolicy
            and isinstance(trails, NoTrails)
            and not (parts.transfers.active or parts.drafting.active)
            and not (parts.config.priority_aging or parts.config.whole_prompts)
        )

    def plan(self, step: Step, now: float) -> bool:
        """Plan an empty step if it is calm; whether it was. If not, nothing has changed."""
        if not isinstance(step, SteadyStep) or not self._is_calm(step):
            return False
        lacking = self._steady.rows(step)
        decodes, prompts = _split(self._table.moving.values())
        self._grow(decodes, lacking)
        for request in decodes:
            self._chunks.decode(step, request)
        self._share(step, prompts, self._budget - step.rows - len(decodes), now)
        self._steady.planned(step, decodes)
        return True

    def needs_nothing(self, step: Step) -> bool:
        """Whether a planned step may run as it is: no chunk's request has ended, and nobody can use what is left of the budget."""
        if not self._possible or self._table.idle_open:
            return False
        running, left = self._table.running, self._budget - step.tokens
        if left == self._budget:
            return False
        for chunk in step.chunks:
            if chunk.request_id not in running:
                return False
        if left <= 0:
            return True
        if self._table.waiting and len(running) < self._most:
            return False
        planned = {chunk.request_id for chunk in step.chunks}
        return not any(
            r.prefilling and r.wants_step and r.request_id not in planned for r in self._table.moving.values()
        )

    def _is_calm(self, step: SteadyStep) -> bool:
        table = self._table
        running = table.running
        return (
            self._possible
            and not table.idle_open
            and len(running) <= self._room
            and self._pool.available >= self._steady.due(step.step_id) + len(table.moving)
            and self._policy.is_stable(table.waiting, running.values())
        )

    def _grow(self, decodes: list[Request], lacking: list[Request]) -> None:
        """Give each decode the block that its token needs, in their order."""
        size = self._pool.block_size
        needy = [request for request in decodes if request.computed >= len(request.block_table) * size]
        if needy:
            lacking = sorted([*needy, *lacking], key=_place)
        for request in lacking:
            self._take_block(request)

    def _share(self, step: SteadyStep, prompts: list[Request], budget: int, now: float) -> None:
        """Share what decodes leave among prompts, those of newcomers included."""
        table, policy = self._table, self._policy
        running = len(table.running)
        if budget <= 0:
            return
        if running < self._most and table.waiting:
            line = policy.admission_order(table.waiting, table.running.values(), self._cache.warm)
            admitted = self._admission.admit(line, prompts, running, budget)
            for request in admitted:
                table.start(request, now)
            prompts += admitted
        if len(prompts) == 1:
            self._chunks.prefill(step, prompts[0], min(prompts[0].remaining, budget))
        elif prompts:
            shares = split_prefill(map(policy.need, prompts), budget)
            for request in prompts:
                if request.arrival in shares:
                    self._chunks.prefill(step, request, shares[request.arrival])


def _split(running: Iterable[Request]) -> tuple[list[Request], list[Request]]:
    """Those that compute their newest token, by priority and arrival, and those that compute more."""
    decodes, prompts = list[Request](), list[Request]()
    for request in running:
        if request.decodes:
            decodes.append(request)
        elif request.prefilling and request.wants_step:
            prompts.append(request)
    if len(decodes) > 1:
        decodes.sort(key=_place)
    return decodes, prompts


def _place(request: Request) -> tuple[int, int]:
    return request.priority, request.arrival
