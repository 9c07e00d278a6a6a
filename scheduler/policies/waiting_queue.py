"""The waiting queue: lanes, each sorted by priority and then by arrival. A preempted request keeps its place.

Requests whose prefix is resident go together: within one priority the first `lookahead` of a lane are examined, and those
that find at least half of their prompt computed pass the others. A request that was passed `MAX_PASSES` times is no longer
passed, so nobody starves. (Global prefix sharing is from BatchLLM, section 4; online, a lookahead is what can be had of it.)

What belongs here: places in the queue. Never: which lane is next, what fits.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

from scheduler.types.request import Request

MAX_PASSES = 8

Warm = Callable[[Request], bool]  # whether much of the request's prompt is resident


def _place(request: Request) -> tuple[int, int]:
    return request.priority, request.arrival


class WaitingQueue:
    """Requests that hold no blocks.

    Args:
        lane_of: the lane of a request; it must not change while it waits.
        lookahead: how many requests of a lane may pass each other for the sake of a resident prefix; 0: none.
    """

    def __init__(self, lane_of: Callable[[Request], str], lookahead: int) -> None:
        self._lanes: dict[str, list[Request]] = {}
        self._lane_of = lane_of
        self._lookahead = lookahead
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, request: object) -> bool:
        return any(request in requests for requests in self._lanes.values())

    def __iter__(self) -> Iterator[Request]:
        """Lane after lane."""
        return chain.from_iterable(self._lanes.values())

    def heads(self) -> dict[str, Request]:
        """The first request of each lane that is not empty."""
        return {lane: requests[0] for lane, requests in self._lanes.items()}

    def first(self) -> Request | None:
        """The first request of all, if any waits."""
        return min((requests[0] for requests in self._lanes.values()), key=_place, default=None)

    def add(self, request: Request) -> None:
        """Put a request in its place by priority and arrival."""
        insort(self._lanes.setdefault(self._lane_of(request), []), request, key=_place)
        self._count += 1

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        lane = self._lane_of(request)
        self._lanes[lane].remove(request)
        if not self._lanes[lane]:
            del self._lanes[lane]
        self._count -= 1

    def take(self, request: Request) -> None:
        """`remove` a request that comes in; those before it have been passed."""
        for other in self._lanes[self._lane_of(request)]:
            if other is request:
                break
            if other.priority == request.priority:
                other.passed += 1
        self.remove(request)

    def admission_order(self, lane: str, warm: Warm) -> Iterator[Request]:
        """The requests of a lane in the order in which they are to be tried; the queue may change meanwhile."""
        requests = list(self._lanes.get(lane, ()))
        yield from together(islice(requests, self._lookahead), warm)
        yield from islice(requests, self._lookahead, None)


def together(requests: Iterable[Request], warm: Warm) -> Iterator[Request]:
    """The requests, warm ones before the others as far as priority and `MAX_PASSES` allow."""
    behind: list[Request] = []
    for request in requests:
        if behind and behind[0].priority != request.priority:
            yield from behind
            behind = []
        if warm(request):
            yield request
            continue
        behind.append(request)
        if request.passed >= MAX_PASSES:
            yield from behind
            behind = []
    yield from behind
