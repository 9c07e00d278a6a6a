"""Priorities age: nobody waits for ever because more urgent requests keep coming.

A request that has waited for `patience` seconds is *overdue*: from then on it is of the most urgent class that waits, however
urgent those are that come later. Within that class its arrival puts it first, and once it runs it is not preempted for the class.
At most an eighth of the seats is given in this way at a time. So a backlog of little urgency moves on, oldest first, and does not
turn the order around.

What belongs here: who is overdue. Never: places in the queue, what fits.
"""

from heapq import heapify, heappop, heappush

from scheduler.policies.waiting_queue import WaitingQueue
from scheduler.types.request import Request, RequestState

_SHARE = 8  # one in so many seats may be held by requests that were overdue
_SLACK = 64  # entries of requests that no longer wait before a list of them is cleaned

Entry = tuple[float, int, Request]  # since when it waits, its arrival


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
        self._classes: dict[int, list[Entry]] = {}  # by priority: a heap each; entries of requests that left may linger
        self._overdue: list[Request] = []  # those that were raised and have not ended
        if patience:
            waiting.patience = patience

    def plan(self, now: float) -> None:
        """Raise those that are overdue now. To be called before each plan."""
        self._waiting.now = now
        entered = self._waiting.take_entered()
        if not self._patience:
            return
        for request in dict.fromkeys(entered):
            if request.started:
                request.waits_since = now
            if not request.overdue:
                heappush(
                    self._classes.setdefault(request.priority, []), (request.waits_since, request.arrival, request)
                )
        for priority in list(self._classes):
            self._clean(priority)
        self._overdue = [request for request in self._overdue if request.state is not RequestState.FINISHED]
        if not self._classes:
            return
        first = min(self._classes)
        for request in self._overdue:
            if request.priority > first:
                self._raise(request, first)
        while len(self._overdue) < self._most and (due := self._longest_waiting(first, now)):
            self._overdue.append(due)
            self._raise(due, first)

    def _clean(self, priority: int) -> None:
        """Drop entries of requests that wait no longer, or again: those in front, and all if there are too many."""
        entries = self._classes[priority]
        if len(entries) > 2 * len(self._waiting) + _SLACK:
            entries[:] = filter(_waits, entries)
            heapify(entries)
        while entries and not _waits(entries[0]):
            heappop(entries)
        if not entries:
            del self._classes[priority]

    def _longest_waiting(self, first: int, now: float) -> Request | None:
        """The request that waits longest of those that are overdue and less urgent than `first`; None if there is none."""
        heads = [entries[0] for priority, entries in self._classes.items() if priority > first]
        due = min((head for head in heads if now - head[0] >= self._patience), default=None)
        if due is None:
            return None
        heappop(self._classes[due[2].priority])
        self._clean(due[2].priority)
        return due[2]

    def _raise(self, request: Request, priority: int) -> None:
        request.overdue = True
        waits = request.state is RequestState.WAITING
        if waits:
            self._waiting.remove(request)
        request.priority, request.place = priority, request.arrival
        if waits:
            self._waiting.add(request)


def _waits(entry: Entry) -> bool:
    since, _, request = entry
    return request.state is RequestState.WAITING and request.waits_since == since and not request.overdue
