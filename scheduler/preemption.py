"""Which requests lose their blocks, and how: when a running one needs a block and none is left, or a waiting one may push in."""

from collections.abc import Callable, Iterable, Sequence

from scheduler.admission import Admission
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.request_table import RequestTable
from scheduler.skipping.steady_decodes import SteadyDecodes
from scheduler.trails import Trails
from scheduler.types.messages import EngineStats
from scheduler.types.request import Request


def choose_victim(
    running: Iterable[Request],
    needy: Request,
    pool: BlockPool,
    protected: Callable[[Request], bool],
    policy: SchedulingPolicy,
) -> Request:
    """The running request to preempt: the first to give way by the policy, then the least lost work, then the youngest.

    It may be the needy one itself. Those that are `protected` hold all they can need and are left alone.
    """
    open_to = [request for request in running if not protected(request) and request.block_table]

    def reluctance(request: Request) -> tuple[int, ...]:
        # One that is loading gives its blocks back only when the loads have ended.
        place = request.loading, lost_work(request, pool), -request.arrival
        return *(-part for part in policy.preemption_rank(request, needy)), *place

    return min(open_to or [needy], key=reluctance)


class Preemption:
    """Takes blocks from running requests of one scheduler.

    Args:
        slots: number of requests that may run at once.
        pool: the pool of the blocks.
        cache: gives keys to what is saved.
        transfers: saves it.
        table: the requests.
        admission: knows what a waiting request lacks.
        policy: knows who may be preempted for whom.
        steady: sequences that are to be looked at as they are.
        trails: writes down who was.
        stats: the counters to update.
    """

    def __init__(
        self,
        *,
        slots: int,
        pool: BlockPool,
        cache: PrefixCache,
        transfers: TransferPlanner,
        table: RequestTable,
        admission: Admission,
        policy: SchedulingPolicy,
        steady: SteadyDecodes,
        trails: Trails,
        stats: EngineStats,
    ) -> None:
        self._slots = slots
        self._pool = pool
        self._cache = cache
        self._transfers = transfers
        self._table = table
        self._admission = admission
        self._policy = policy
        self._steady = steady
        self._trails = trails
        self._stats = stats

    def victim_for(self, needy: Request) -> Request:
        """The running request to preempt so that `needy`, a running one, gets a block. It may be the needy one itself."""
        self._steady.dissolve()
        running = self._table.running.values()
        return choose_victim(running, needy, self._pool, lambda other: self._protected(other, needy), self._policy)

    def victims_of(self, newcomer: Request) -> list[Request]:
        """The running requests to preempt so that a waiting one comes in; none if it comes in anyway or cannot come in.

        The lowest class goes first, within it the least lost work, and no request gives way in vain.
        """
        self._steady.dissolve()
        running = self._table.running.values()
        open_to = self._open_to(newcomer, running)
        fits = len(running) < self._slots and self._admission.lacks(newcomer, alone=not running) <= 0
        if not open_to or fits:
            return []
        chosen: list[Request] = []
        for victim in open_to:
            chosen.append(victim)
            if self._admission.lacks(newcomer, chosen, alone=len(chosen) == len(running)) <= 0:
                return self._needed(newcomer, chosen)
        return []

    def preempt(self, request: Request, by: Request) -> None:
        """Put the request back into the queue for another one, its blocks saved first if that pays."""
        saved = self._transfers.swaps() and not request.loading
        self._trails.preempted(request, by, lost=lost_work(request, self._pool), saved=saved)
        if saved:
            self._swap_out(request)
        self._table.put_back(request)
        if not _is_idler(request, by):  # that bound is among equals
            request.preemptions += 1
        request.times.preemptions = request.preemptions
        self._stats.preemptions += 1

    def _swap_out(self, request: Request) -> None:
        """Save what is computed: full blocks under their keys, the last one under the key of its part."""
        self._transfers.ended(request)  # the copy of its tail that an earlier preemption left
        self._cache.publish(request)
        keys, tail = request.block_hashes[: request.published], request.cut_tail(self._pool.block_size)
        self._table.release(request)
        self._transfers.swap_out(keys, tail)
        self._stats.swapped_out += 1

    def _open_to(self, newcomer: Request, running: Iterable[Request]) -> list[Request]:
        """The running requests that may be preempted for the newcomer, the first to go first."""
        losses: list[tuple[tuple[int, ...], Request]] = []
        for request in running:
            if not self._policy.is_preemptible(request, newcomer, 0) or self._protected(request, newcomer):
                continue
            lost = lost_work(request, self._pool)
            if self._policy.is_preemptible(request, newcomer, lost):
                reluctance = *(-part for part in self._policy.rank(request)), lost, -request.arrival
                losses.append((reluctance, request))
        return [request for _, request in sorted(losses, key=lambda pair: pair[0])]

    def _protected(self, request: Request, other: Request) -> bool:
        """Whether one request is protected from another. No idle one is from those that are not."""
        return self._admission.protected(request) and not _is_idler(request, other)

    def _needed(self, newcomer: Request, victims: Sequence[Request]) -> list[Request]:
        """The victims without those that a later, larger one made superfluous. One stays: the newcomer may lack a slot."""
        needed = list(victims)
        for victim in victims[:-1]:
            others = [request for request in needed if request is not victim]
            if self._admission.lacks(newcomer, others) <= 0:
                needed = others
        return needed


def _is_idler(request: Request, other: Request) -> bool:
    return request.idle and not other.idle


def lost_work(request: Request, pool: BlockPool) -> int:
    """Computed tokens that no other request keeps resident."""
    kept = sum(pool.shared(block_id) for block_id in request.block_table)
    return max(0, request.computed - kept * pool.block_size)
