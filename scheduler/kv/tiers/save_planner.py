"""What is saved below the device: blocks of requests that ended, of those that were preempted, and copies of copies.

    save     device -> first tier     a block that was released, when there is time; it is held as by a reader until copied
    filled   device -> first tier     a block of a running request: in case this process dies, or because another will go on
    swap     device -> first tier     what a preempted request has computed, all of it and at once
    spill    each tier -> the next    what has arrived there, so that it is not lost with a tier that is smaller or volatile

A save may be planned only before any chunk of the same step: its content is then what earlier steps have written.

What belongs here: saves. Never: what is loaded, who is preempted.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Literal

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.tier_list import TierList
from scheduler.kv.tiers.transfers_in_flight import TransfersInFlight
from scheduler.types.block_hash import BlockKey
from scheduler.types.transfers import DEVICE, Transfer, TransferResult

Preemption = Literal["auto", "swap", "recompute"]

_IN_FLIGHT = 64  # blocks that may be saved at once, not counting swaps: they cannot be used meanwhile
_POOL_SHARE = 8  # at most one block in this many is being saved
_SPILL_BLOCKS = 16  # of one spill; a tier receives one spill at a time, so that loads seldom wait for it

Hashes = OrderedDict[bytes, None]  # a set that keeps its order


class SavePlanner:
    """Saves of one device.

    Args:
        pool: the device's.
        tiers: those below the device.
        in_flight: takes the planned transfers.
        estimate: says whether loading a copy is ever faster than computing it.
        preemption: what is done with the blocks of a preempted request: `swap` saves them, `recompute` does not, `auto` saves
            them if that is faster.
    """

    def __init__(
        self,
        pool: BlockPool,
        tiers: TierList,
        in_flight: TransfersInFlight,
        estimate: LoadOrRecompute,
        preemption: Preemption,
    ) -> None:
        self._pool = pool
        self._tiers = tiers
        self._in_flight = in_flight
        self._estimate = estimate
        self._preemption = preemption
        self._to_save: Hashes = OrderedDict()
        self._to_spill: dict[str, Hashes] = {tier.name: OrderedDict() for tier in tiers}  # by target

    @property
    def busy(self) -> bool:
        """Whether anything waits to be saved."""
        return bool(self._to_save) or any(self._to_spill.values())

    def released(self, keys: Iterable[bytes]) -> None:
        """Blocks of a request that ended were released: they are saved when there is time, the head of the prefix first."""
        tier = self._tiers.first
        if tier is None or not self._estimate.pays(tier.name):
            return
        keys = list(keys)
        there = [key for key in keys if tier.knows(key)]
        self._tiers.stats[tier.name].spared += len(there)  # copies that are still valid
        tier.touch(there)
        self._to_save.update((key, None) for key in keys if not tier.knows(key))

    def filled(self, keys: Sequence[bytes], *, urgent: bool) -> None:
        """Blocks of a running request have become full: they are saved when there is time, or with this step if another engine
        waits for them."""
        tier = self._tiers.first
        if tier is None:
            return
        if urgent:
            self._save(tier, keys, urgent=True)
        elif self._estimate.pays(tier.name):
            self._to_save.update((key, None) for key in keys if not tier.knows(key))

    def hand_over(self, keys: Sequence[bytes], tail: tuple[BlockKey, int] | None) -> None:
        """Save at once what is not saved yet of a request that another engine goes on with.

        Args:
            keys: hashes of its full blocks, which it has released.
            tail: key and block of its last, partly filled one. The block belongs to the transfer from now on.
        """
        tier = self._tiers.first
        if tier is not None:
            self._save(tier, [key for key in keys if not tier.knows(key)], tail, urgent=True)
        elif tail is not None:
            self._pool.release([tail[1]])

    def swaps(self) -> bool:
        """Whether the blocks of a preempted request are to be saved."""
        tier = self._tiers.first
        if tier is None or self._preemption == "recompute":
            return False
        return self._preemption == "swap" or self._estimate.swap_pays(tier.name)

    def swap_out(self, keys: Sequence[bytes], tail: tuple[BlockKey, int] | None) -> None:
        """Save what a preempted request has just released, all of it and at once.

        Args:
            keys: hashes of its full blocks.
            tail: key and block of its last, partly filled one. The block belongs to the transfer from now on.

        Raises:
            ValueError: there is no tier; ask `swaps` first.
        """
        tier = self._tiers.first
        if tier is None:
            raise ValueError("no tier to save to: `swaps` was not asked")
        self._save(tier, keys, tail, urgent=True, yielded=True)

    def plan(self) -> None:
        """Plan saves for some of what waits. To be called before the step has any chunk."""
        tier = self._tiers.first
        if tier is None:
            self._to_save.clear()
        elif self._to_save:
            limit = min(_IN_FLIGHT, max(1, self._pool.blocks // _POOL_SHARE))
            limit -= sum(map(len, self._in_flight.held))
            self._save(tier, [self._to_save.popitem(last=False)[0] for _ in range(min(limit, len(self._to_save)))])
        self._plan_spills()

    def _save(
        self,
        tier: TierIndex,
        keys: Iterable[bytes],
        tail: tuple[BlockKey, int] | None = None,
        *,
        urgent: bool = False,
        yielded: bool = False,
    ) -> None:
        block_keys, blocks = list[BlockKey](), list[int]()
        for key in keys:
            block = self._pool.holder(key)
            if block is None:  # evicted meanwhile
                continue
            if tier.knows(key):
                self._tiers.stats[tier.name].spared += 1
                continue
            block_key = self._pool.key_of(block)
            if tier.reserve(block_key):
                self._pool.share([block])
                block_keys.append(block_key)
                blocks.append(block)
        if tail is not None:
            if tier.reserve(tail[0]):
                block_keys.append(tail[0])
                blocks.append(tail[1])
            else:
                self._pool.release([tail[1]])
        if block_keys:
            self._in_flight.plan(DEVICE, tier.name, block_keys, blocks, held=True, yielded=yielded, urgent=urgent)

    # --- from tier to tier ---

    def on_arrival(self, transfer: Transfer, result: TransferResult) -> None:
        """What has arrived in a tier goes on to the next, except partly filled blocks of preempted requests."""
        tier = self._tiers.below(transfer.target)
        if tier is None or not self._estimate.pays(tier.name):
            return
        for block_key, size in zip(transfer.block_keys, result.sizes, strict=True):
            full = len(block_key.token_ids) == self._pool.block_size
            if size and full and not tier.knows(block_key.hash):
                self._to_spill[tier.name][block_key.hash] = None

    def _plan_spills(self) -> None:
        tiers = self._tiers.written
        fed = {lower.name for _, lower in pairwise(tiers)}
        for name, waiting in self._to_spill.items():
            if name not in fed:  # this tier was lost, or all tiers above it
                waiting.clear()
        for upper, lower in pairwise(tiers):
            waiting = self._to_spill[lower.name]
            if waiting and not self._in_flight.to(lower.name):
                self._spill(upper, lower, waiting)

    def _spill(self, upper: TierIndex, lower: TierIndex, waiting: Hashes) -> None:
        block_keys: list[BlockKey] = []
        while waiting and len(block_keys) < _SPILL_BLOCKS:
            block_key = upper.key_of(waiting.popitem(last=False)[0])
            if block_key is not None and lower.reserve(block_key):
                block_keys.append(block_key)
        if block_keys:
            upper.hold([block_key.hash for block_key in block_keys])
            self._in_flight.plan(upper.name, lower.name, block_keys)
