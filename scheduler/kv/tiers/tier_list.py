"""The tiers below a device, fastest first, and what concerns all of them alike.

How many there are and what they are called is up to the caller: neither this nor the planner knows a tier by its name. What is
asked for is read from the first tier that has it. What is saved goes to the first, and from each to the next (`save_planner`).

What belongs here: the tiers' order, calls that go to each of them, their counters. Never: transfers, blocks of the device.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.types.messages import TierStats
from scheduler.types.transfers import DEVICE, TierChanges, Transfer, TransferResult


class TierList:
    """The books of the tiers that are still up, and the counters of all that ever were.

    Args:
        tiers: fastest first.

    Raises:
        ValueError: two tiers have the same name, or one is named like the device.
    """

    def __init__(self, tiers: Sequence[TierIndex]) -> None:
        self.stats = {tier.name: TierStats() for tier in tiers}
        self._tiers = {tier.name: tier for tier in tiers}
        self._all = list(tiers)
        if len(self._tiers) < len(tiers) or DEVICE in self._tiers:
            raise ValueError(f"tiers need names of their own, none of them {DEVICE!r}: {[tier.name for tier in tiers]}")

    def __iter__(self) -> Iterator[TierIndex]:
        return iter(self._tiers.values())

    def __len__(self) -> int:
        return len(self._tiers)

    def get(self, name: str) -> TierIndex | None:
        """The tier of this name; None if it is the device, or lost."""
        return self._tiers.get(name)

    @property
    def written(self) -> list[TierIndex]:
        """Those to which something is saved."""
        return [tier for tier in self if not tier.read_only]

    @property
    def first(self) -> TierIndex | None:
        """The fastest to which something is saved, if there is any."""
        return next(iter(self.written), None)

    def below(self, name: str) -> TierIndex | None:
        """The next slower tier to which something is saved; None if this is the last, or lost."""
        return next((lower for upper, lower in pairwise(self.written) if upper.name == name), None)

    def holder(self, key: bytes) -> TierIndex | None:
        """The fastest tier from which this content can be read now."""
        return next((tier for tier in self if tier.readable(key)), None)

    # --- for all of them ---

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """A new request can use these contents, which form a prefix: eviction may learn from that."""
        for tier in self:
            tier.on_lookup(keys)

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents, which form a prefix, until then, whether they are here or yet to come."""
        for tier in self:
            tier.pin(keys, until)

    def expire(self, now: float) -> None:
        """End the pins whose time has come."""
        for tier in self:
            tier.expire(now)

    def forget(self, keys: Iterable[bytes]) -> None:
        """These contents are in doubt: no tier serves them from now on."""
        keys = list(keys)
        for tier in self:
            tier.forget(keys)

    # --- results ---

    def follow(self, name: str, changes: TierChanges) -> None:
        """Others have put and dropped contents in a tier, if it is still up."""
        tier = self.get(name)
        if tier is not None:
            tier.follow(changes)

    def record(self, transfer: Transfer, result: TransferResult) -> None:
        """Enter the result of a transfer into the books of both sides, and count it."""
        source, target, stats = self.get(transfer.source), self.get(transfer.target), self.stats[transfer.lower]
        arrived = sum(size > 0 for size in result.sizes)
        if transfer.target == DEVICE:
            stats.loaded += arrived
            stats.load_copies += result.copies
            stats.failed += len(result.gone)  # a cancelled load has none: what it asked for is still there
        else:
            stats.saved += arrived
            stats.save_copies += result.copies
        if source is not None:
            source.release(transfer.hashes)
            source.vanished(result.gone)
        if target is not None:
            target.arrived(transfer.hashes, result.sizes)

    def mark_lost(self, name: str) -> None:
        """A tier failed as a whole. Transfers to and from it will fail too, each by a result of its own."""
        tier = self._tiers.pop(name, None)
        if tier is not None:
            tier.lost()
        self.stats[name].up = False

    def mark_back(self, name: str) -> None:
        """A lost tier can be used again; what it holds is not known yet. No transfer to or from it may be under way."""
        back = next(tier for tier in self._all if tier.name == name)
        back.reset()
        self._tiers = {tier.name: tier for tier in self._all if tier is back or tier.name in self._tiers}
        self.stats[name].up = True

    def snapshot(self) -> Mapping[str, TierStats]:
        """The counters by the tiers' names, with gauges brought up to date."""
        for name, stats in self.stats.items():
            tier = self.get(name)
            stats.blocks, stats.bytes = (0, 0) if tier is None else (len(tier), tier.used)
            stats.evicted = stats.evicted if tier is None else tier.evictions
        return self.stats

    def check_integrity(self, transfers: Sequence[Transfer]) -> None:
        """Compare the books of each tier with the transfers in flight.

        Raises:
            IntegrityError: names the first contradiction.
        """
        for tier in self:
            tier.check_integrity(
                reading=(key for each in transfers if each.source == tier.name for key in each.hashes),
                arriving=(key for each in transfers if each.target == tier.name for key in each.hashes),
            )
