"""Eviction by prediction: what is least likely to be asked for again goes first.

After Antoniadis et al., "Paging with Succinct Predictions" (ICML 2023): a prediction only says of a content whether it may be
discarded, contents marked in this way are evicted before others, and a bound holds however wrong the predictions are. Here they
are learned from the requests alone, as they come: a content is of a *kind*, and the kind's history says what it is worth to keep
it at its age (`scheduler.kv.reuse_stats`). What is worth less than the least recently used content is marked.

The kind of a content is how the request that last asked for it continued what was known (nothing known, or a prefix that many
share; the very end of an earlier request, as the next turn of a chat does; somewhere in between, as an edited prompt does), and
how often the content was asked for.

The bound: a list of keys, as long as the store, is kept as "least recently used" would keep the store. While the misses counted
here exceed the list's by more than `_MARGIN` of them and `_SLACK` of the store's size, eviction follows the list: the oldest
goes first, so that what the list does not have leaves before what it has. From then on each further miss is a miss of the list
too, or brings back something that the list has, which happens at most as often as the store has places before both hold the same.

What belongs here: kinds, their order, the bound. Never: clock time, blocks, tiers.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from scheduler.kv.reuse_stats import Cohort, ReuseStats

_MARGIN = 1 / 64  # of the misses of the list
_SLACK = 1 / 8  # of the store's size: what learning may cost
_KNOWN = 8  # keys remembered, in multiples of the store's size: as long as ages are told apart
_KNOWN_MORE = 1 << 18  # at most this many keys more than the store holds: about 60 MB
_MANY = 3  # continuations that make a prefix one that many share
_USES = 3  # contents asked for this often or more often are of one kind


@dataclass(slots=True, eq=False)
class _Known:
    """What is remembered of a key, present or not."""

    group: Cohort
    lookups: int  # how often
    continuations: int  # different contents that followed it


class Predicted:
    """An `EvictionPolicy` for a store of `capacity` contents."""

    learns: ClassVar[bool] = True

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reuse = ReuseStats(capacity)
        self.misses = 0  # contents asked for and not found here
        self.lru_misses = 0  # contents asked for that the list does not have
        self.trusting = True  # whether predictions are followed
        self._known: OrderedDict[bytes, _Known] = OrderedDict()  # least recently asked for first
        self._list: OrderedDict[bytes, None] = OrderedDict()
        self._here: dict[bytes, tuple[Cohort, int]] = {}  # its group when it was added, and how many were added before
        self._queues: dict[object, OrderedDict[bytes, None]] = {}  # by kind, first added first
        self._added = 0
        self._remembers = min(_KNOWN * capacity, capacity + _KNOWN_MORE)
        self._going: Cohort | None = None  # the last victim's group; the rest of it goes next unless something changes

    # --- what is here ---

    def add(self, *keys: bytes) -> None:
        """Nobody uses these any more: the last of them goes first."""
        groups = self._groups(keys)
        self._going = None
        for key, group in zip(reversed(keys), reversed(groups), strict=True):
            self._here[key] = (group, self._added)
            self._queues.setdefault(group.kind, OrderedDict())[key] = None
            self._added += 1

    def remove(self, *keys: bytes) -> None:
        """These are in use again, or gone."""
        for key in keys:
            group, _ = self._here.pop(key)
            del self._queues[group.kind][key]

    def victim(self) -> bytes:
        """Take out the key whose content goes now."""
        queue = self._queues.get(self._going.kind) if self._going else None
        key = next(iter(queue)) if queue else self._next()
        if self._here[key][0] is not self._going or not self.trusting:
            key = self._next()
        self._going = self._here[key][0]
        self.remove(key)
        return key

    def victims(self, count: int) -> list[bytes]:
        """Take out those that go now."""
        return [self.victim() for _ in range(count)]

    def clear(self) -> None:
        """All keys are gone."""
        self._going = None
        self._here.clear()
        self._queues.clear()

    def _next(self) -> bytes:
        heads = [next(iter(queue)) for queue in self._queues.values() if queue]
        if not heads:
            raise KeyError("nothing is here")
        oldest = min(heads, key=lambda key: self._here[key][1])
        if not self.trusting:
            return oldest
        return min(heads, key=lambda key: (self.reuse.worth(self._here[key][0]), self._here[key][1]))

    def _groups(self, keys: Sequence[bytes]) -> list[Cohort]:
        """The groups of these. Contents that nobody has asked for yet (an answer) are of the kind of what precedes them."""
        groups: list[Cohort] = []
        fresh: Cohort | None = None
        before: _Known | None = None  # which may be forgotten meanwhile
        for key in keys:
            known = self._known.get(key)
            if known is None:
                if fresh is None:
                    fresh = self.reuse.group(groups[-1].kind if groups else (0, 1))
                self.reuse.on_join(fresh, 1)
                known = _Known(fresh, 1, 0)
                self._remember(key, known)
                self._note(key)
                if before is not None:
                    before.continuations += 1
            groups.append(known.group)
            before = known
        return groups

    # --- what is learned ---

    def on_lookup(self, keys: Sequence[bytes], hits: int) -> None:
        """A new request can use these contents."""
        if not keys:
            return
        self._going = None
        self._compare(keys, hits)
        known = self._return(keys)
        self.reuse.advance(len(keys))
        way = self._way(known, len(keys))
        groups: dict[int, Cohort] = {}
        for place, key in enumerate(keys):
            record = known[place] if place < len(known) else _Known(Cohort((0, 1), 0), 0, int(place < len(keys) - 1))
            record.lookups += 1
            uses = min(record.lookups, _USES)
            if uses not in groups:
                groups[uses] = self.reuse.group((way, uses))
            record.group = groups[uses]
            self.reuse.on_join(record.group, 1)
            self._remember(key, record)

    def _return(self, keys: Sequence[bytes]) -> list[_Known]:
        """The records of the longest prefix that is known; their contents are asked for again."""
        known = []
        for key in keys:
            record = self._known.get(key)
            if record is None:
                break
            self.reuse.on_reuse(record.group, 1)
            known.append(record)
        return known

    @staticmethod
    def _way(known: list[_Known], asked: int) -> int:
        """How a request continues: 0 from nothing, or what many share; 1 from an earlier one's end; 2 from its middle."""
        if not known:
            return 0
        last = known[-1]
        before = last.continuations
        if len(known) < asked:
            last.continuations += 1
        return 0 if before >= _MANY else 1 if before == 0 else 2

    def _remember(self, key: bytes, record: _Known) -> None:
        before = self._known.get(key, record)
        if before is not record:  # known, but after something that was forgotten: as good as forgotten itself
            before.group.waiting -= 1
        self._known[key] = record
        self._known.move_to_end(key)
        if len(self._known) > self._remembers:
            _, forgotten = self._known.popitem(last=False)
            forgotten.group.waiting -= 1

    # --- the bound ---

    def _compare(self, keys: Sequence[bytes], hits: int) -> None:
        listed = next((place for place, key in enumerate(keys) if key not in self._list), len(keys))
        self.misses += len(keys) - hits
        self.lru_misses += len(keys) - listed
        for key in reversed(keys):
            self._note(key)
        margin = _MARGIN if self.trusting else _MARGIN / 2  # trust returns later than it is lost
        self.trusting = self.misses <= self.lru_misses * (1 + margin) + self.capacity * _SLACK

    def _note(self, key: bytes) -> None:
        self._list[key] = None
        self._list.move_to_end(key)
        if len(self._list) > self.capacity:
            self._list.popitem(last=False)

    # --- observation ---

    def check_integrity(self) -> None:
        """Compare the books with each other."""
        queued = {key: kind for kind, queue in self._queues.items() for key in queue}
        assert {key: group.kind for key, (group, _) in self._here.items()} == queued, (
            "a key is in the queue of its kind"
        )
        for queue in self._queues.values():
            numbers = [self._here[key][1] for key in queue]
            assert numbers == sorted(numbers), "a queue is in the order of adding"
        assert len(self._list) <= self.capacity and len(self._known) <= self._remembers, "memory is bounded"
        waiting: dict[Cohort, int] = {}
        for record in self._known.values():
            waiting[record.group] = waiting.get(record.group, 0) + 1
        assert all(group.waiting == count for group, count in waiting.items()), "a group counts its keys that wait"

    def __len__(self) -> int:
        return len(self._here)

    def __contains__(self, key: object) -> bool:
        return key in self._here

    def __iter__(self) -> Iterator[bytes]:
        """The keys in the order in which they would be evicted with the present worths."""
        by_age = sorted(self._here, key=lambda key: self._here[key][1])
        if not self.trusting:
            return iter(by_age)
        return iter(sorted(by_age, key=lambda key: self.reuse.worth(self._here[key][0])))
