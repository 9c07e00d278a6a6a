"""Which cached content is evicted first when room is needed: one small interface, the same for every tier.

Contract. A policy knows the *keys* of contents that nobody uses now and that may be evicted; the store that owns it knows
where they lie and how large they are. A content is useful only while everything before it in its prefix is there, so if
several keys are given at once, in the order of the prefix, the last of them goes first. The policy does not know keys in use:
`remove` them when they come into use, `add` them when their last user has gone. Every call is deterministic and costs
at most O(log n) per key. Time is the caller's, in seconds, and only pins need it.

What belongs here: the order of eviction, and pins. What is learned from requests is in `scheduler.kv.predicted_eviction`.
Never: blocks, bytes, tiers, a clock.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import ClassVar, Protocol

from scheduler.kv.predicted_eviction import Predicted


class EvictionPolicy(Protocol):
    """Which content is evicted first. It has one owner, which calls it from one thread.

    Attributes:
        learns: whether it makes something of lookups.
    """

    learns: ClassVar[bool]

    def add(self, *keys: bytes) -> None:
        """These are no longer used and may be evicted, the last of them first. None of them is here yet."""

    def remove(self, *keys: bytes) -> None:
        """These are in use again, or gone. Raises KeyError if one is not here."""

    def victim(self) -> bytes:
        """Take out the key whose content is evicted now. Raises KeyError if there is none."""

    def victims(self, count: int) -> list[bytes]:
        """Take out so many, in their order; there must be as many."""

    def on_lookup(self, keys: Sequence[bytes], hits: int) -> None:
        """A new request can use these contents, of which the first `hits` were found. Called once per request."""

    def clear(self) -> None:
        """All keys are gone."""

    def check_integrity(self) -> None:
        """Compare its books with each other. Raises AssertionError that names the first contradiction."""

    def __len__(self) -> int: ...

    def __contains__(self, key: object) -> bool: ...

    def __iter__(self) -> Iterator[bytes]:
        """The keys in the order in which they would be evicted if nothing else happened."""


class Lru:
    """Least recently used first."""

    learns: ClassVar[bool] = False

    def __init__(self) -> None:
        self._policy: OrderedDict[bytes, None] = OrderedDict()

    def add(self, *keys: bytes) -> None:
        """Nobody uses these any more: the last of them goes first."""
        for key in reversed(keys):
            self._policy[key] = None

    def remove(self, *keys: bytes) -> None:
        """These are in use again, or gone."""
        for key in keys:
            del self._policy[key]

    def victim(self) -> bytes:
        """Take out the key whose content goes now."""
        return self._policy.popitem(last=False)[0]

    def victims(self, count: int) -> list[bytes]:
        """Take out those that go now."""
        pop = self._policy.popitem
        return [pop(False)[0] for _ in range(count)]

    def on_lookup(self, keys: Sequence[bytes], hits: int) -> None:
        """Nothing is learned from it: only use counts."""

    def clear(self) -> None:
        """All keys are gone."""
        self._policy.clear()

    def check_integrity(self) -> None:
        """There is one book only: nothing to compare."""

    def __len__(self) -> int:
        return len(self._policy)

    def __contains__(self, key: object) -> bool:
        return key in self._policy

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._policy)


class Eviction:
    """An eviction policy with pins: what stores use, with the calls of `EvictionPolicy` and three more.

    A pinned content is evicted only when no other is left. Pins expire, and only a share of the capacity can be pinned, so
    that contents without pins are not starved. A pin outlives its content: if that is computed again, it is pinned again.

    Args:
        policy: the policy for contents without a pin; belongs to this object from now on.
        capacity: number of contents that the store holds.
        pinned_share: share of the capacity that may be pinned.
    """

    def __init__(self, policy: EvictionPolicy, capacity: int, pinned_share: float = 0.25) -> None:
        self.pinned_limit = int(capacity * pinned_share)
        self._policy = policy
        self._until: dict[bytes, float] = {}
        self._ends: list[tuple[float, int, bytes]] = []  # a heap; an entry whose time is no longer the pin's is stale
        self._told = 0  # pins so far, so that those of one call expire in their order
        self._kept: OrderedDict[bytes, None] = OrderedDict()  # pinned, here and unused: least recently used first

    # --- as a policy ---

    @property
    def learns(self) -> bool:
        """Whether it makes something of lookups."""
        return self._policy.learns

    def add(self, *keys: bytes) -> None:
        """Nobody uses these any more: the last of them goes first."""
        if self._until:
            for key in reversed(keys):
                if key in self._until:
                    self._kept[key] = None
            keys = tuple(key for key in keys if key not in self._until)
        self._policy.add(*keys)

    def remove(self, *keys: bytes) -> None:
        """These are in use again, or gone."""
        if self._kept:
            for key in keys:
                if key in self._kept:
                    del self._kept[key]
                else:
                    self._policy.remove(key)
        else:
            self._policy.remove(*keys)

    def victim(self) -> bytes:
        """Take out the key whose content goes now."""
        return self.victims(1)[0]

    def victims(self, count: int) -> list[bytes]:
        """Take out those that go now; pinned ones only after all others."""
        unpinned = len(self._policy)
        if count <= unpinned or not self._kept:
            return self._policy.victims(count)
        return self._policy.victims(unpinned) + [self._kept.popitem(last=False)[0] for _ in range(count - unpinned)]

    def on_lookup(self, keys: Sequence[bytes], hits: int) -> None:
        """A new request can use these contents."""
        self._policy.on_lookup(keys, hits)

    def clear(self) -> None:
        """All keys are gone; pins stay."""
        self._policy.clear()
        self._kept.clear()

    # --- pins ---

    @property
    def unpinned(self) -> int:
        """Keys here that have no pin."""
        return len(self._policy)

    @property
    def pinned(self) -> int:
        """Keys with a pin, whether their contents are here or not."""
        return len(self._until)

    def pin(self, keys: Sequence[bytes], until: float) -> int:
        """Keep a prefix, present or yet to come, until this time. A pin that already lasts longer stays as it is.

        Returns:
            How many of the keys are pinned now, counted from the first: fewer than given if the limit is reached.
        """
        pinned = 0
        for key in keys:
            if key not in self._until and len(self._until) >= self.pinned_limit:
                break
            if until > self._until.get(key, float("-inf")):
                self._until[key] = until
                heappush(self._ends, (until, self._told, key))
                self._told += 1
            pinned += 1
        for key in reversed(keys[:pinned]):
            if key in self._policy:
                self._policy.remove(key)
                self._kept[key] = None
        # A conversation that is pinned anew with each turn leaves stale entries.
        if len(self._ends) > 2 * self.pinned_limit:
            self._ends = sorted(entry for entry in self._ends if self._until.get(entry[2]) == entry[0])
        return pinned

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Remove the pins of these keys. Their contents then count as just used; keys without a pin are ignored."""
        self._policy.add(*(key for key in keys if self._until.pop(key, None) is not None and self._drop_kept(key)))

    def expire(self, now: float) -> None:
        """End the pins whose time has come."""
        over: list[bytes] = []
        while self._ends and self._ends[0][0] <= now:
            until, _, key = heappop(self._ends)
            if self._until.get(key) == until:
                over.append(key)
        if over:
            self.unpin(over)

    def _drop_kept(self, key: bytes) -> bool:
        here = key in self._kept
        if here:
            del self._kept[key]
        return here

    # --- observation ---

    def check_integrity(self) -> None:
        """Compare the books with each other."""
        self._policy.check_integrity()
        assert len(self._until) <= self.pinned_limit, "pins keep to their share"
        assert self._kept.keys() <= self._until.keys(), "what is kept has a pin"
        assert not any(key in self._policy for key in self._until), "what has a pin is in no other order"
        ends = {(until, key) for until, _, key in self._ends}
        assert all((until, key) in ends for key, until in self._until.items()), "every pin has an end"

    def __len__(self) -> int:
        return len(self._policy) + len(self._kept)

    def __contains__(self, key: object) -> bool:
        return key in self._policy or key in self._kept

    def __iter__(self) -> Iterator[bytes]:
        yield from self._policy
        yield from self._kept


def eviction_of(name: str, capacity: int) -> Eviction:
    """The policy that `--eviction` names, for a store of `capacity` contents. Raises ValueError for any other name."""
    if name == "lru":
        return Eviction(Lru(), capacity)
    if name == "predicted":
        return Eviction(Predicted(capacity), capacity)
    raise ValueError(f"eviction must be lru or predicted, got {name!r}")
