"""Who leaves the waiting queue: a request is admitted with the blocks of its whole prompt, or not at all.

What belongs here: conditions of admission, and how much is reserved. Never: who has to give up blocks, what a step holds.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from scheduler.idle import IdleShare
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tails import Tails
from scheduler.kv.tiers.load_planner import Wanted
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import Need, SchedulingPolicy
from scheduler.policies.waiting_queue import SCAN, LaneOrder
from scheduler.token_budget import splitter
from scheduler.trails import Trails
from scheduler.types.config import SchedulerConfig
from scheduler.types.request import Request
from scheduler.types.trail import WaitCause


@dataclass(slots=True)
class _Glance:
    """What is known of the requests at the front of the queue at one glance.

    Attributes:
        need: less than that none can use, unless it finds something in the cache; None if not all of them are new and alike.
        keys: of their first blocks; None until they are asked for: prompts are hashed for them.
    """

    need: Need | None
    keys: frozenset[bytes] | None = None


class Admission:
    """Decides for one scheduler who is admitted, and gives the admitted requests their blocks."""

    def __init__(
        self,
        *,
        config: SchedulerConfig,
        pool: BlockPool,
        cache: PrefixCache,
        tails: Tails,
        transfers: TransferPlanner,
        policy: SchedulingPolicy,
        trails: Trails,
        running: Mapping[str, Request],
        idle: IdleShare,
    ) -> None:
        self._config = config
        self._split = splitter(config.whole_prompts)
        self._pool = pool
        self._cache = cache
        self._tails = tails
        self._transfers = transfers
        self._policy = policy
        self._trails = trails
        self._running = running
        self._idle = idle
        self._front: list[Request] | None = None  # that was looked at last
        self._glance: _Glance | None = None  # at these

    def admit(
        self, waiting: Iterable[Request], prefills: Sequence[Request], running: int, budget: int, idle_budget: int = 0
    ) -> list[Request]:
        """Requests of the queue that would get tokens in this step, in their order, with their blocks taken.

        One that waits for content that another is computing is passed over, and so is a long one whose share would be
        nothing: both gain by what is running now. One that lacks blocks is not passed: those behind it must not use up its
        room.

        Args:
            waiting: the queue; not changed.
            prefills: running requests that share the budget.
            running: number of running requests.
            budget: tokens of the step for prompts.
            idle_budget: of these, what idle requests may have. They come in only if nobody else waits.
        """
        admitted, needs = list[Request](), [self._policy.need(request) for request in prefills]
        if self._are_in_vain(waiting, needs, budget):
            return []
        self._glance, others = None, False  # whom they wait for is found out now
        refused: Need | None = None  # for want of tokens, with what has been admitted so far
        for request in islice(waiting, SCAN):
            if running + len(admitted) >= self._config.max_running:
                break
            others |= not request.idle
            if request.idle:
                if others or not idle_budget or self._idle.full(len(admitted)):
                    break
                budget = idle_budget
            if refused is not None and self._asks_no_less(request, refused):
                self._trails.passed_over(request, WaitCause.TOKENS)
                continue
            if (own := self._own_wait(request)) is not None:
                self._trails.passed_over(request, *own)
                continue
            hits = self._cache.hits(request)
            wanted = self._wanted(request, hits)
            tail = None if wanted else self._tails.of(request, len(hits))
            need = self._policy.need(request, len(hits) * self._pool.block_size if tail is None else tail.end)
            if not wanted and (_no_less(need, refused) or need.arrival not in self._split([*needs, need], budget)):
                # One that loads takes nothing from this step.
                refused = refused if _no_less(need, refused) else need
                self._trails.passed_over(request, WaitCause.TOKENS)
                continue
            shared = hits + [item.block for item in wanted if item.block is not None]
            alone = running + len(admitted) == 0
            lacking = self._lacks(request, shared, alone=alone)
            if lacking > 0 and self._tails.give_up():
                lacking, tail = self._lacks(request, shared, alone=alone), None
            if lacking > 0:
                self._trails.line_stands(WaitCause.BLOCKS, self._running.values(), request, lacking)
                break
            self._take_blocks(request, hits, wanted, alone=alone)
            if tail is not None:
                self._tails.take(tail, request)
            if not wanted:
                needs.append(need)
            admitted.append(request)
            refused = None
        return admitted

    def protected(self, request: Request) -> bool:
        """Whether the request was preempted so often that, from its next start, it keeps all blocks that it may ever need."""
        return request.preemptions >= self._config.max_preemptions

    def lacks(self, request: Request, without: Iterable[Request] = (), *, alone: bool = False) -> int:
        """Blocks that the request lacks to be admitted, 0 or less if it fits.

        Args:
            request: a waiting one.
            without: running requests that are assumed to have given their blocks back.
            alone: whether no other request would run.
        """
        hits = self._cache.hits(request)
        hits += [item.block for item in self._wanted(request, hits) if item.block is not None]
        found = set(hits)
        freed = sum(
            not self._pool.shared(block_id) and block_id not in found
            for other in without
            for block_id in other.block_table
        )
        return self._lacks(request, hits, alone=alone) - freed

    def first_in_need(self, waiting: Iterable[Request]) -> Request | None:
        """The first of the queue that waits for nothing but room: the one for which others may have to make room."""
        return next((each for each in islice(waiting, SCAN) if self._own_wait(each) is None), None)

    def _own_wait(self, request: Request) -> tuple[WaitCause, str] | None:
        """Whether it waits for content that another one is computing or another engine saves, or for its drafts to be verified;
        and for whom."""
        if request.verifying:
            return WaitCause.DRAFTS, ""
        if request in self._transfers.expected:
            return WaitCause.HAND_OVER, ""
        if self._cache.awaits_pending(request):
            name = self._cache.maker_of(request)
            maker = self._running.get(name)  # None: it was admitted a moment ago, before this one
            if request.idle or maker is None or not maker.idle:  # an idle one may take for ever
                return WaitCause.PREFIX, name
        return None

    def _are_in_vain(self, waiting: Iterable[Request], needs: Sequence[Need], budget: int) -> bool:
        """Whether all of these are refused for want of tokens: known at little cost, if the same ones were looked at before."""
        front = waiting.front if isinstance(waiting, LaneOrder) else None
        if not front or self._front is not front:  # most fronts are looked at once
            self._front, self._glance = front, None
            return False
        if not needs or self._transfers.active:
            return False
        glance = self._glance = self._glance or _Glance(self._least(front))
        if glance.need is None or glance.need.arrival in self._split([*needs, glance.need], budget):
            return False
        if glance.keys is None:
            glance.keys = frozenset(key for each in front if (key := self._cache.first_key(each)) is not None)
        if not self._cache.are_cold(glance.keys):
            return False
        self._trails.all_passed_over(front, WaitCause.TOKENS)
        return True

    def _least(self, front: list[Request]) -> Need | None:
        """Less than what any of these needs, if all of them are new and alike."""
        rank = self._policy.rank(front[0])
        if any(r.started or r.idle or r.awaits or self._policy.rank(r) != rank for r in front):
            return None
        return Need(rank, min(r.arrival for r in front), min(r.known for r in front))

    def _asks_no_less(self, request: Request, refused: Need) -> bool:
        """Whether it waits for nothing of its own, finds nothing in the cache and is refused as well: known at little cost."""
        if request.arrival < refused.arrival or request.known < refused.remaining:
            return False
        if request.verifying or request.forked_from is not None or self._transfers.active:
            return False
        return self._cache.is_cold(request) and self._policy.rank(request) == refused.rank

    def _lacks(self, request: Request, hits: list[int], *, alone: bool) -> int:
        """Blocks needed beyond what the pool has, less the watermark that is left to running requests."""
        needed = self._pool.blocks_for(self._reservation(request)) - len(hits)
        idle_hits = sum(not self._pool.in_use(block_id) for block_id in hits)
        watermark = 0 if alone else max(1, int(self._config.decode_watermark * self._pool.blocks))
        return needed + watermark - (self._pool.available - idle_hits)

    def _reservation(self, request: Request) -> int:
        """Tokens whose blocks are taken at admission: those that exist, or after many preemptions all that can ever exist.

        One that is still in flight since before a preemption counts: the chunk that computes the others again may compute it, too.
        """
        return request.longest() if self.protected(request) else request.known

    def _wanted(self, request: Request, hits: list[int]) -> list[Wanted]:
        """What is loaded from lower tiers after the hits."""
        if not self._transfers.active:
            return []
        return self._transfers.loadable_after(request, self._cache.usable_hashes(request), len(hits))

    def _take_blocks(self, request: Request, hits: list[int], wanted: list[Wanted], *, alone: bool) -> None:
        shared = hits + [item.block for item in wanted if item.block is not None]
        self._pool.share(shared)
        new = self._pool.blocks_for(self._reservation(request)) - len(shared)
        fresh = iter(self._pool.allocate(new, hits[-1] if hits else None))
        loaded = [next(fresh) if item.block is None else item.block for item in wanted]
        request.block_table = hits + loaded + list(fresh)
        request.computed = len(hits) * self._pool.block_size
        request.published = len(hits)
        self._cache.announce(request, len(hits))
        if wanted:
            self._trails.loads(request, [item.tier for item in wanted if item.tier is not None])
            self._transfers.load(request, wanted, loaded, alone=alone)


def _no_less(need: Need, refused: Need | None) -> bool:
    """Whether a prompt gets no tokens, whatever the split, because one that asks for no more and came before it gets none."""
    if refused is None or need.rank != refused.rank:
        return False
    return need.arrival > refused.arrival and need.remaining >= refused.remaining
