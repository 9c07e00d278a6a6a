"""The waiting queue: lanes, each sorted by priority and then by place, which is arrival. A preempted request keeps its place.

A tenant's own priorities (`own_priority`) hold among its requests only: those of one lane and priority share the places that they
have by arrival, the most urgent takes the first. So nobody else moves. A request that has waited for `patience` seconds gives
its place away no more.

Requests whose prefix is resident go together: within one priority the first `lookahead` of a lane are examined, and those
that find at least half of their prompt computed pass the others. A request that was passed `MAX_PASSES` times is no longer
passed, so nobody starves. (Global prefix sharing is from BatchLLM, section 4; online, a lookahead is what can be had of it.)

What belongs here: places in the queue. Never: which lane is next, what fits.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from math import inf

from scheduler.types.request import Request

MAX_PASSES = 8
SCAN = 64  # waiting requests looked at in one plan; bounds the planning time when thousands wait

Warm = Callable[[Request], bool]  # whether much of the request's prompt is resident


def _place(request: Request) -> tuple[int, int]:
    return request.priority, request.place


def _own_order(request: Request) -> tuple[int, int]:
    return request.own_priority, request.arrival


class LaneOrder(Iterator[Request]):
    """The requests of a lane in the order in which they are to be tried.

    Attributes:
        front: the first `SCAN` of them in the order of their places, and the same list as long as they are the same; None if others
            may pass these.
    """

    def __init__(self, order: Iterator[Request], front: list[Request] | None) -> None:
        self._order = order
        self.front = front

    def __next__(self) -> Request:
        return next(self._order)


class WaitingQueue:
    """Requests that hold no blocks.

    Args:
        lane_of: the lane of a request; it must not change while it waits.
        lookahead: how many requests of a lane may pass each other for the sake of a resident prefix; 0: none.

    Attributes:
        patience: seconds after which a request gives its place away no more.
        now: seconds of the caller's clock, as of the latest plan.
    """

    def __init__(self, lane_of: Callable[[Request], str], lookahead: int) -> None:
        self._lanes: dict[str, list[Request]] = {}
        self._lane_of = lane_of
        self._lookahead = lookahead
        self._fronts: dict[str, list[Request]] = {}  # of lanes, as far as somebody has asked and nothing has changed
        self._count = 0
        self._urgent = Counter[str]()  # for each tenant: how many of its waiting requests have a priority of their own
        self.patience = inf
        self.now = 0.0

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
        if len(self._lanes) == 1:
            return next(iter(self._lanes.values()))[0]
        return min((requests[0] for requests in self._lanes.values()), key=_place, default=None)

    @property
    def reordered(self) -> bool:
        """Whether any request has a priority among those of its tenant."""
        return bool(self._urgent)

    def add(self, request: Request) -> None:
        """Put a request in its place by priority and arrival."""
        name = self._lane_of(request)
        lane = self._lanes.setdefault(name, [])
        place = bisect_right(lane, _place(request), key=_place)
        lane.insert(place, request)
        if place < SCAN:
            self._fronts.pop(name, None)
        self._count += 1
        if request.own_priority:
            self._urgent[request.tenant] += 1
        if request.tenant in self._urgent:
            self._share_places(lane, request)

    def _share_places(self, lane: list[Request], newest: Request) -> None:
        """Give the places of the newest request and its tenant's others to them in the order of their own priorities."""
        peers = [
            request
            for request in lane
            if request.tenant == newest.tenant and request.priority == newest.priority and not self._stays(request)
        ]
        places = [request.place for request in peers]
        for request, place in zip(sorted(peers, key=_own_order), places, strict=True):
            request.place = place
        lane.sort(key=_place)
        self._fronts.clear()

    def _stays(self, request: Request) -> bool:
        return request.overdue or self.now - request.waits_since >= self.patience

    def remove(self, request: Request) -> None:
        """Take a request out, wherever it stands."""
        lane = self._lane_of(request)
        self._lanes[lane].remove(request)
        self._fronts.pop(lane, None)
        if not self._lanes[lane]:
            del self._lanes[lane]
        self._count -= 1
        if request.own_priority:
            self._urgent -= Counter((request.tenant,))  # names with nothing left are dropped

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
        return LaneOrder(self._in_order(lane, warm), self._front(lane) if self._lookahead <= SCAN else None)

    def _in_order(self, lane: str, warm: Warm) -> Iterator[Request]:
        requests = list(self._lanes.get(lane, ()))
        yield from together(islice(requests, self._lookahead), warm)
        yield from islice(requests, self._lookahead, None)

    def _front(self, lane: str) -> list[Request]:
        front = self._fronts.get(lane)
        if front is None:
            front = self._fronts[lane] = self._lanes.get(lane, [])[:SCAN]
        return front


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
