"""For offline batches: a prefix is computed once and used up while it is resident, and the longest decodes begin first.

After BatchLLM (Zheng et al. 2024, arXiv 2412.03594): prefixes are found over the whole line, and requests that mostly decode
go first. The prompts form a tree of their blocks' keys, and the queue is that tree from left to right. So requests that share a
prefix stand together, at every depth: a system prompt that all have in common does not hide the documents below it. (The paper
sorts one batch once and sizes steps by memory; here the queue is kept sorted as it changes, and steps are sized as with every
other policy.)

    priority    a class is a tree of its own; the lowest number goes first
    started     requests that ran before and were put back go first in their class, by arrival: their work may still be resident
    begun       groups of which a request has come in go before the others, in the order in which they were begun: a group is
                finished before the next. Here the queue differs from a list that is sorted once: requests may still arrive
    ratio       then the one with more tokens to generate (`max_tokens`) for each prompt token to compute, where a shared
                prefix counts once: its decodes fill up the steps that compute the prompts of those behind it
    arrival     of the request that formed the group

An arrival or a departure changes the groups above the request and nothing else. What belongs here: places in the queue.
Never: what is resident, what fits, who gives way (by priority alone, as in `priority`).
"""

import sys
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, takewhile

from scheduler.kv.prefix_cache import PrefixCache
from scheduler.policies.base import SchedulingPolicy
from scheduler.policies.waiting_queue import WaitingQueue, Warm
from scheduler.types.request import Request

_NEVER = sys.maxsize  # begun: not yet
Place = tuple[int, float, int]  # begun, the ratio negated, arrival: unique among siblings


@dataclass(slots=True, eq=False, kw_only=True)
class PrefixGroup:
    """Waiting requests that share a prefix: those that end with it, and groups that share more.

    Attributes:
        keys: keys of the blocks that it shares beyond the group above; empty for the whole of a class.
        born: `arrival` of the request that formed it.
        begun: when its first request came in, counted in admissions; `_NEVER` before.
        members: number of requests below, at any depth.
        decode: tokens that they may generate.
        below: prompt tokens that they have beyond the prefix, each shared one counted once.
        place: its place in the order of the group above.
        groups: groups that share more, by their first key.
        line: places of requests and (by their first key) groups, in order.
    """

    keys: list[bytes] = field(default_factory=list)
    born: int = 0
    begun: int = _NEVER
    members: int = 0
    decode: int = 0
    below: int = 0
    place: Place = (_NEVER, 0.0, 0)
    groups: dict[bytes, "PrefixGroup"] = field(default_factory=dict)
    line: list[tuple[*Place, "bytes | Request"]] = field(default_factory=list)

    def insert(self, place: Place, item: "bytes | Request") -> None:
        """Put an item in its place."""
        insort(self.line, (*place, item))

    def delete(self, place: Place) -> None:
        """Take out the item with this place."""
        del self.line[bisect_left(self.line, place)]  # a tuple sorts right after its own prefix

    def walk(self) -> Iterator[Request]:
        """All members in order. Without recursion: prompts that extend each other nest as deeply as they have blocks."""
        ways = [(self, iter(self.line))]
        while ways:
            group, items = ways[-1]
            entry = next(items, None)
            if entry is None:
                ways.pop()
            elif isinstance(entry[-1], Request):
                yield entry[-1]
            else:
                inner = group.groups[entry[-1]]
                ways.append((inner, iter(inner.line)))


class PrefixQueue(WaitingQueue):
    """A waiting queue sorted as above. It must not change between two requests of one `admission_order`.

    An `add`, `remove` or `take` costs a binary search for each group above the request.

    Args:
        cache: knows which blocks a request may share.
    """

    def __init__(self, cache: PrefixCache) -> None:
        super().__init__(_own_lane, 0)
        self._cache = cache
        self._classes: dict[int, PrefixGroup] = {}
        self._priorities: list[int] = []  # those of `_classes`, in order
        self._depths: dict[str, int] = {}  # of requests in the queue, in blocks; they may gain tokens meanwhile
        self._taken = 0

    def first(self) -> Request | None:
        """The head of the topmost group, as no lane orders the queue."""
        return next(self.admission_order("", _anything), None)

    def admission_order(self, lane: str, warm: Warm) -> Iterator[Request]:
        """The whole line; neither argument matters."""
        for priority in self._priorities:
            yield from self._classes[priority].walk()

    def add(self, request: Request) -> None:
        """Put a request into its group, which may be a new one."""
        super().add(request)
        if request.priority not in self._classes:
            self._classes[request.priority] = PrefixGroup()
            insort(self._priorities, request.priority)
        keys = [] if request.started else self._cache.usable_hashes(request)
        self._depths[request.request_id] = len(keys)
        path = self._grow_path(request, keys)
        path[-1].insert(self._place(request, len(keys)), request)
        self._account(path, request, len(keys), 1)

    def remove(self, request: Request) -> None:
        """Take out a request and the groups that are empty without it."""
        self._leave(request, _NEVER)

    def take(self, request: Request) -> None:
        """`remove` a request that comes in: its groups are begun."""
        self._taken += 1
        self._leave(request, self._taken)

    def _leave(self, request: Request, begun: int) -> None:
        super().remove(request)
        depth = self._depths.pop(request.request_id)
        path = self._path(request, depth)
        path[-1].delete(self._place(request, depth))
        for group in path:
            group.begun = min(group.begun, begun)
        self._account(path, request, depth, -1)
        if not path[0].members:
            del self._classes[request.priority]
            self._priorities.remove(request.priority)

    # --- the tree ---

    def _path(self, request: Request, depth: int) -> list[PrefixGroup]:
        """The groups of a request in the queue, from its class inwards."""
        path, at = [self._classes[request.priority]], 0
        while at < depth:
            path.append(path[-1].groups[request.block_hashes[at]])
            at += len(path[-1].keys)
        return path

    def _grow_path(self, request: Request, keys: list[bytes]) -> list[PrefixGroup]:
        """The groups that a request is to be in, from its class inwards: the last may be new, or split off another."""
        path, at = [self._classes[request.priority]], 0
        while at < len(keys):
            outer = path[-1]
            inner = outer.groups.get(keys[at])
            if inner is None:
                inner = outer.groups[keys[at]] = PrefixGroup(keys=keys[at:], born=request.arrival)
            else:
                pairs = zip(inner.keys, keys[at:], strict=False)
                common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                if common < len(inner.keys):
                    inner = self._split(outer, inner, common)
            path.append(inner)
            at += len(inner.keys)
        return path

    def _split(self, outer: PrefixGroup, inner: PrefixGroup, common: int) -> PrefixGroup:
        """A group of the first `common` blocks of `inner`, in its place and with the rest of it inside."""
        middle = PrefixGroup(
            keys=inner.keys[:common],
            born=inner.born,
            begun=inner.begun,
            members=inner.members,
            decode=inner.decode,
            place=inner.place,
        )
        inner.keys = inner.keys[common:]
        inner.place = self._place_of(inner)
        middle.below = self._cost(inner)
        middle.groups[inner.keys[0]] = inner
        middle.insert(inner.place, inner.keys[0])
        outer.groups[middle.keys[0]] = middle
        return middle

    def _account(self, path: list[PrefixGroup], request: Request, depth: int, sign: int) -> None:
        """The request has come (1) or gone (-1): bring sums and places up to date, from the innermost group outwards."""
        tokens = sign * self._own_tokens(request, depth)
        for outer, group in reversed(list(pairwise(path))):
            before = self._cost(group)
            if group.members:
                outer.delete(group.place)
            self._change(group, sign, sign * request.to_generate, tokens)
            if group.members:
                group.place = self._place_of(group)
                outer.insert(group.place, group.keys[0])
            else:
                del outer.groups[group.keys[0]]
            tokens = self._cost(group) - before
        self._change(path[0], sign, sign * request.to_generate, tokens)

    @staticmethod
    def _change(group: PrefixGroup, members: int, decode: int, tokens: int) -> None:
        group.members += members
        group.decode += decode
        group.below += tokens

    def _cost(self, group: PrefixGroup) -> int:
        """Prompt tokens to compute for the whole group."""
        return len(group.keys) * self._cache.block_size + group.below if group.members else 0

    def _own_tokens(self, request: Request, depth: int) -> int:
        """The request's tokens after the blocks that others may share: at least one, which samples."""
        return len(request.prompt_ids) + len(request.generated_ids) - depth * self._cache.block_size

    def _place(self, request: Request, depth: int) -> Place:
        if request.started:
            return 0, 0.0, request.arrival
        return _NEVER, -request.to_generate / self._own_tokens(request, depth), request.arrival

    def _place_of(self, group: PrefixGroup) -> Place:
        return group.begun, -group.decode / self._cost(group), group.born


class PrefixBatchPolicy(SchedulingPolicy):
    """By priority, then by groups of one prefix, decode-heavy ones first. It guarantees no latency to anybody."""

    def make_queue(self, lookahead: int, cache: PrefixCache) -> WaitingQueue:
        """A `PrefixQueue`, which needs no lookahead."""
        return PrefixQueue(cache)


def _own_lane(request: Request) -> str:
    """A lane for each request: the base class keeps which requests wait, the tree keeps where."""
    return request.request_id


def _anything(request: Request) -> bool:
    return True
