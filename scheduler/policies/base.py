"""Who goes first: in the waiting queue and for the tokens of a step, and who gives way to whom.

One `SchedulingPolicy` for each `SchedulerConfig.scheduling`. What belongs here: comparing requests. Never: blocks, budgets, when to
preempt.

    fcfs        arrival alone; requests have no priorities
    priority    a lower `priority` first, by arrival within one
    fair        priority first, then the tenant that was served least (`scheduler.policies.fair`), by arrival within one tenant
    throughput  priority first, then prefix by prefix, those with most to generate first (`scheduler.policies.prefix_batch`)
"""

from collections.abc import Collection, Iterable, Iterator
from operator import attrgetter
from typing import ClassVar, NamedTuple

from scheduler.kv.prefix_cache import PrefixCache
from scheduler.policies.waiting_queue import WaitingQueue, Warm
from scheduler.types.request import Request
from scheduler.types.step import Step, StepResult

_priority, _own_priority = attrgetter("priority"), attrgetter("own_priority")

Rank = tuple[int, ...]  # the lower goes first; all ranks of a policy have the same length


class Need(NamedTuple):
    """What one prompt could use."""

    rank: Rank  # the lower goes first
    arrival: int  # the request's, unique
    remaining: int  # tokens still to compute


class SchedulingPolicy:
    """By priority, then by arrival: `priority`. It is also `fcfs`, where all priorities are equal.

    Args:
        groups: whether requests with a resident prefix may pass others in the queue.

    Attributes:
        weighs_decodes: whether it makes anything of what decodes compute (`on_tokens`), or holds some back (`deferred`).
    """

    weighs_decodes: ClassVar[bool] = False

    def __init__(self, *, groups: bool = True) -> None:
        self.groups = groups
        # The first of the queue, which cannot push out any that runs: it still cannot while nobody starts, since those that run
        # only end, or become more urgent.
        self._stable: tuple[Request, int] | None = None

    def make_queue(self, lookahead: int, cache: PrefixCache) -> WaitingQueue:
        """An empty waiting queue for one scheduler. The first `lookahead` of a lane may pass each other for a resident prefix."""
        return WaitingQueue(self.lane, lookahead if self.groups else 0)

    def lane(self, request: Request) -> str:
        """The lane of the waiting queue in which the request stands; within it, priority and arrival decide."""
        return ""

    def on_add(self, request: Request, waiting: WaitingQueue) -> None:
        """A new request is about to enter the queue."""

    def on_finish(self, request: Request) -> None:
        """The request has ended."""

    def on_dequeue(self, request: Request) -> None:
        """The request leaves the queue: it starts to run, or it ended there."""
        self._stable = None

    def on_tokens(self, request: Request, begin: int, end: int) -> None:
        """Tokens `[begin, end)` of the request are planned, for the first time."""

    def on_step(self, step: Step, result: StepResult) -> None:
        """The step ended. Its `seconds` are 0 if they were not measured."""

    def admission_order(self, waiting: WaitingQueue, running: Collection[Request], warm: Warm) -> Iterator[Request]:
        """The queue from first to last. A request that the caller admits must have its blocks before the next is asked for."""
        return waiting.admission_order("", warm)

    def rank(self, request: Request) -> Rank:
        """The rank of a running request for its share of a step."""
        return (request.priority,)

    def need(self, request: Request, computed: int | None = None) -> Need:
        """What the request could use of a step's prompt tokens, as it is or if `computed` tokens were computed."""
        done = request.computed if computed is None else computed
        return Need(self.rank(request), request.arrival, request.known - done)

    def deferred(self, ready: Collection[Request], prompts: Iterable[Request]) -> tuple[set[int], int]:
        """The `arrival`s of decodes that run only on what some of these prompts leave, and the tokens these prompts still need."""
        return set(), 0

    def is_preemptible(self, running: Request, newcomer: Request, lost: int) -> bool:
        """Whether `running` may be preempted, at the cost of `lost` computed tokens, so that a waiting `newcomer` comes in.

        Equals never are: what one gains the other loses, and all pay for the lost work.
        """
        return running.priority > newcomer.priority or (
            running.priority == newcomer.priority and yields(running, newcomer) > 0
        )

    def preemption_rank(self, request: Request, needy: Request) -> Rank:
        """How soon a running request is preempted for one that needs a block to continue: the highest first."""
        return request.priority, yields(request, needy)

    def is_stable(self, waiting: WaitingQueue, running: Collection[Request]) -> bool:
        """Whether no waiting request can push out a running one, now or while all running ones decode."""
        first = waiting.first()
        if first is None:
            return True
        if waiting.reordered:
            return False
        seen = first, first.priority
        if seen != self._stable:
            if any(map(_own_priority, running)):
                return False
            if max(map(_priority, running), default=first.priority) > first.priority:
                return False
            self._stable = seen
        return True


def yields(request: Request, needy: Request) -> int:
    """By how much one request is less urgent than another of its tenant. Nobody's own priorities say anything about others."""
    return max(0, request.own_priority - needy.own_priority) if request.tenant == needy.tenant else 0
