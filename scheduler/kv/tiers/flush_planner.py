"""What is copied before an orderly stop: contents that would end with this process, into a tier that survives it.

The device's contents go there directly, past the tiers between; those that only a volatile tier has follow. What was used last goes
first, the head of a prefix before its tail, so that whenever time runs out the best of it is there. No more is copied than fits
beside what the tier has and was used later: nothing pushes out what is worth more.

What belongs here: which contents, in which order. Never: time, bytes, when a process stops.
"""

from collections import deque
from collections.abc import Iterator

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.tier_list import TierList
from scheduler.kv.tiers.transfers_in_flight import TransfersInFlight
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import DEVICE

_BLOCKS = 16  # of one transfer: the last one may still run when the time is over
_TRANSFERS = 2  # under way at once, so that the tier never waits


class FlushPlanner:
    """The flush of one process.

    Args:
        pool: the device's.
        tiers: those below the device.
        in_flight: takes the planned transfers.
        estimate: says whether loading a copy is ever faster than computing it.

    Attributes:
        target: the tier that it goes to; None: there is none, or nothing to copy.
    """

    def __init__(
        self, pool: BlockPool, tiers: TierList, in_flight: TransfersInFlight, estimate: LoadOrRecompute
    ) -> None:
        self._pool = pool
        self._tiers = tiers
        self._in_flight = in_flight
        self._estimate = estimate
        self.target: TierIndex | None = None
        self._surviving: list[TierIndex] = []
        self._unsaved: set[bytes] = set()
        self._waiting: deque[tuple[str, bytes]] = deque()  # the tier that it is read from, and the content
        self._earlier: set[int] = set()  # other transfers to the target: what they bring may have to make room

    @property
    def busy(self) -> bool:
        """Whether anything is still to be copied, or on its way to the tier."""
        if self.target is None or self._tiers.get(self.target.name) is None:
            return False
        return bool(self._waiting or self._in_flight.to(self.target.name))

    @property
    def unsaved(self) -> int:
        """Contents that no surviving tier had when it began, those on their way there included."""
        return len(self._unsaved)

    @property
    def written(self) -> int:
        """Those of them that a surviving tier has now."""
        return sum(any(tier.readable(key) for tier in self._surviving) for key in self._unsaved)

    def begin(self) -> None:
        """Find what has to be copied. No step may be under way or planned from now on, and no block be taken."""
        self._surviving = [tier for tier in self._tiers if tier.survives]
        target = next((tier for tier in self._surviving if self._estimate.pays(tier.name)), None)
        if target is None:
            return
        room, safe = target.capacity, list[bytes]()
        for source, key in self._by_use():
            if any(tier.readable(key) for tier in self._surviving):
                safe.append(key)
            else:
                self._unsaved.add(key)
            if any(tier.knows(key) for tier in self._surviving):
                room -= target.size_of(key)
            elif (room := room - target.block_bytes) >= 0:
                self._waiting.append((source, key))
        if self._unsaved:
            target.touch(safe)  # these are not what makes room for the others
            self._earlier = set(self._in_flight.to(target.name))
            self.target = target

    def plan(self) -> None:
        """Plan the next transfers, unless enough are under way."""
        while self.target is not None and self._waiting:
            under_way = self._in_flight.to(self.target.name)
            if len(under_way) == _TRANSFERS or not self._earlier.isdisjoint(under_way):
                return
            source = self._waiting[0][0]
            leading = next((at for at, (name, _) in enumerate(self._waiting) if name != source), len(self._waiting))
            keys = [self._waiting.popleft()[1] for _ in range(min(leading, _BLOCKS))]
            self._copy(source, keys, self.target)

    def _copy(self, source: str, keys: list[bytes], target: TierIndex) -> None:
        block_keys = [each for key in keys if (each := self._key_of(source, key)) is not None and target.reserve(each)]
        if not block_keys:
            return
        hashes, blocks = [each.hash for each in block_keys], list[int]()
        upper = self._tiers.get(source)
        if upper is not None:
            upper.hold(hashes)
        else:
            blocks = [block for key in hashes if (block := self._pool.holder(key)) is not None]
            self._pool.share(blocks)
        self._in_flight.plan(source, target.name, block_keys, blocks, held=True, urgent=True)

    def _by_use(self) -> Iterator[tuple[str, bytes]]:
        """Each full content that the device or a volatile tier has, and the fastest of them, the last used first."""
        seen = set[bytes]()
        for key in self._pool.contents():
            seen.add(key)
            yield DEVICE, key
        for tier in (tier for tier in self._tiers if not tier.survives):
            for key in tier.contents():
                block_key = tier.key_of(key)
                if key not in seen and block_key is not None and len(block_key.token_ids) == self._pool.block_size:
                    seen.add(key)
                    yield tier.name, key

    def _key_of(self, source: str, key: bytes) -> BlockKey | None:
        """None if it is no longer there."""
        if source == DEVICE:
            block = self._pool.holder(key)
            return None if block is None else self._pool.key_of(block)
        tier = self._tiers.get(source)
        return None if tier is None else tier.key_of(key)
