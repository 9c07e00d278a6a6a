"""Every request that has not finished: where it stands and what it holds.

    add -> waiting -> start -> running -> finish
              ^                   |
              +---- put_back -----+

What belongs here: these transitions, and giving blocks back. Never: which request makes one, what a step holds.
"""

from scheduler.drafting import Drafting
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tails import Tails
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.policies.waiting_queue import WaitingQueue
from scheduler.trails import Trails
from scheduler.types.messages import EngineStats, FinishReason, Output
from scheduler.types.request import Request, RequestState
from scheduler.types.step import Step


class RequestTable:
    """The requests of one scheduler.

    Args:
        pool: the pool of the blocks that running requests hold.
        cache: learns what they no longer compute.
        tails: keeps what others continue.
        transfers: learns what may be saved and what is no longer waited for.
        policy: learns who leaves the queue and who has ended.
        drafting: learns who has ended.
        waiting: the queue, empty.
        trails: writes down who starts.
        stats: the counters to update.

    Attributes:
        open: all requests by id.
        running: those that have blocks, in the order in which they started.
        moving: of these, all but the steady ones (`scheduler.skipping.steady_decodes`).
        waiting: the others.
        retired: ids of requests that finished since the last plan: the worker may forget them.
        idle_open, idle_running: how many of these are idle (`scheduler/idle.py`).
    """

    def __init__(
        self,
        *,
        pool: BlockPool,
        cache: PrefixCache,
        tails: Tails,
        transfers: TransferPlanner,
        policy: SchedulingPolicy,
        drafting: Drafting,
        waiting: WaitingQueue,
        trails: Trails,
        stats: EngineStats,
    ) -> None:
        self.open: dict[str, Request] = {}
        self.running: dict[str, Request] = {}
        self.moving: dict[str, Request] = {}
        self.waiting = waiting
        self.retired: list[str] = []
        self.idle_open = self.idle_running = 0
        self._pool = pool
        self._cache = cache
        self._tails = tails
        self._transfers = transfers
        self._policy = policy
        self._drafting = drafting
        self._trails = trails
        self._stats = stats

    def add(self, request: Request) -> None:
        """A new request enters the queue."""
        self._policy.on_add(request, self.waiting)
        self.open[request.request_id] = request
        self.idle_open += request.idle
        self.waiting.add(request)
        if not request.started:
            self._stats.prompt_tokens += len(request.prompt_ids)

    def start(self, request: Request, now: float) -> None:
        """From waiting to running: it has been admitted and has its blocks."""
        self.waiting.take(request)
        self._policy.on_dequeue(request)
        request.state = RequestState.RUNNING
        self.running[request.request_id] = self.moving[request.request_id] = request
        self.idle_running += request.idle
        self._trails.started(request, evicted=self._cache.was_evicted(request))
        if not request.started:
            request.started = True
            request.times.scheduled = now
            request.times.cached_tokens = request.computed
            self._transfers.on_lookup(self._cache.on_lookup(request))
            self._stats.prefix_query_tokens += len(request.tokens)
            self._stats.prefix_hit_tokens += request.computed

    def put_back(self, request: Request) -> None:
        """From running to waiting: it gives up its blocks and keeps its tokens."""
        self.release(request)
        self._trails.waits_again(request)
        request.state = RequestState.WAITING
        self.waiting.add(request)

    def finish(self, request: Request, reason: FinishReason, now: float) -> Output:
        """From wherever it is to its end. Its blocks are released, the full ones stay cached. Returns its last output."""
        if request.state is RequestState.WAITING:
            self.waiting.remove(request)
            self._policy.on_dequeue(request)
        self._policy.on_finish(request)
        if reason is FinishReason.HANDED_OVER:
            self._hand_over(request)
        else:
            keys = request.block_hashes[: request.published]
            if request.forks and request.block_table:
                self._tails.keep(request)
            self.release(request)
            self._transfers.released(keys)
            self._transfers.ended(request)
        self._drafting.ended(request)
        request.state = RequestState.FINISHED
        request.times.finished = now
        del self.open[request.request_id]
        self.idle_open -= request.idle
        if request.announced:
            self.retired.append(request.request_id)
        return Output(request_id=request.request_id, finish_reason=reason, times=request.times, trail=request.trail)

    def _hand_over(self, request: Request) -> None:
        """Release its blocks to a transfer that saves, the partly filled last one included, what is not saved yet."""
        self._cache.publish(request)
        keys, tail = request.block_hashes[: request.published], request.cut_tail(self._cache.block_size)
        self.release(request)
        self._transfers.hand_over(keys, tail)

    def release(self, request: Request) -> None:
        """Take its blocks away; it no longer runs. Blocks that are being filled stay with their transfers."""
        if self.running.pop(request.request_id, None) is not None:
            self.idle_running -= request.idle
            del self.moving[request.request_id]
        self._cache.pending.drop(request.request_id)
        filling = self._transfers.detach(request)
        self._pool.release([block for block in request.block_table if block not in filling])
        if request.copied is not None:
            self._pool.release([request.copied])
            request.copied = None
        request.block_table = []
        request.computed = request.published = 0

    def take_retired(self) -> list[str]:
        """The ids of requests that finished since the last call."""
        retired, self.retired = self.retired, []
        return retired

    def retract_announcements(self, *steps: Step) -> None:
        """Announce and retire again what steps that did not run would have announced and retired."""
        for step in steps:
            self.retired += step.retired
            for new in step.new:
                if new.request_id in self.open:
                    self.open[new.request_id].announced = False
