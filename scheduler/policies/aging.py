"""Priorities age: nobody waits for ever because more urgent requests keep coming.

A request that has had no token computed for `patience` seconds, in the queue or running, is *overdue*: from then on it is of the
most urgent class there is, however urgent those are that come later. Within that class its arrival puts it first, and it is not
preempted for the class. At most an eighth of the seats is given in this way at a time. So a backlog of little urgency moves on,
oldest first, and does not turn the order around. Idle requests (`scheduler/idle.py`) do not age.

What belongs here: who is overdue. Never: places in the queue, what fits.
"""

from collections.abc import Iterable

from scheduler.policies.waiting_queue import WaitingQueue
from scheduler.types.request import Request, RequestState

_SHARE = 8  # one in so many seats may be held by requests that were overdue
_LOOKS = 10  # times within `patience` that all open requests are looked at


class Aging:
    """Finds the overdue requests of one scheduler, and raises their priority.

    Args:
        waiting: the queue.
        patience: seconds; 0: priorities do not age.
        seats: number of requests that may run at once.
    """

    def __init__(self, waiting: WaitingQueue, patience: float, seats: int) -> None:
        self._waiting = waiting
        self._patience = patience
        self._most = max(1, seats // _SHARE)
        self._next_look = 0.0
        if patience:
            waiting.patience = patience

    def plan(self, requests: Iterable[Request], now: float) -> None:
        """Raise those of these, all open ones, that are overdue now. To be called before each plan."""
        self._waiting.now = now
        if not self._patience or now < self._next_look:
            return
        self._next_look = now + self._patience / _LOOKS
        first = min((request.priority for request in requests), default=0)
        behind = [request for request in requests if request.priority > first and not request.idle]
        raised = [request for request in behind if request.overdue]
        due = [request for request in behind if not request.overdue and self._is_due(request, now)]
        if due:
            due.sort(key=lambda request: (request.waits_since, request.arrival))
            del due[max(0, self._most - sum(request.overdue for request in requests)) :]
        for request in raised + due:
            self._raise(request, first)

    def _is_due(self, request: Request, now: float) -> bool:
        if request.last_step != request.seen_step:  # it has had a chunk since the last look
            request.seen_step, request.waits_since = request.last_step, now
        return now - request.waits_since >= self._patience

    def _raise(self, request: Request, priority: int) -> None:
        request.overdue = True
        waits = request.state is RequestState.WAITING
        if waits:
            self._waiting.remove(request)
        request.priority, request.place = priority, request.arrival
        if waits:
            self._waiting.add(request)
