"""What a waiting request loads from the tiers below the device, and which loads it still waits for.

A request that is loading holds the blocks for it, has no chunk until all of them have arrived or failed, and continues from the
end of those that arrived without a gap.

What belongs here: loads. Never: what is saved, which request is admitted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from scheduler.kv.block_pool import BlockPool, IntegrityError
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_list import TierList
from scheduler.kv.tiers.transfers_in_flight import TransfersInFlight
from scheduler.types.block_hash import BlockKey
from scheduler.types.request import Request
from scheduler.types.transfers import DEVICE, TransferResult


class Wanted(NamedTuple):
    """A block of a request's prefix beyond its first missing one, and where its content is."""

    block_key: BlockKey
    block: int | None  # of the device, if it is there
    tier: str | None  # else the tier it is loaded from
    end: int  # tokens computed once it and all before it are there


class FinishedLoad(NamedTuple):
    """A request whose loads have ended. Its `computed` says how far they brought it; unless `whole`, something was lost."""

    request: Request
    whole: bool


@dataclass(slots=True)
class _Load:
    """A request's loads: for each block from the first missing one, whether it is there yet."""

    request: Request
    ends: list[int]
    here: list[bool]
    places: dict[int, list[int]] = field(default_factory=dict)  # for each transfer under way: indices of its blocks

    @property
    def computed(self) -> int | None:
        """Tokens that are there without a gap; None if not even the first block is."""
        leading = next((index for index, here in enumerate(self.here) if not here), len(self.here))
        return self.ends[leading - 1] if leading else None


class LoadPlanner:
    """Loads of one device's requests."""

    def __init__(
        self, pool: BlockPool, tiers: TierList, in_flight: TransfersInFlight, estimate: LoadOrRecompute
    ) -> None:
        self._pool = pool
        self._tiers = tiers
        self._in_flight = in_flight
        self._estimate = estimate
        self._loads: dict[str, _Load] = {}

    def loadable_after(self, request: Request, keys: Sequence[bytes], hits: int) -> list[Wanted]:
        """What to load after the request's first `hits` blocks, as far as loading is faster than computing.

        Args:
            request: a waiting one.
            keys: hashes of its blocks that may be reused.
            hits: how many of them are on the device.
        """
        wanted = list(self._found(request, keys, hits))
        sources = [item.tier for item in wanted if item.tier is not None]
        count = self._estimate.to_load(sources)
        if count < len(sources):
            loads = [place for place, item in enumerate(wanted) if item.tier is not None]
            del wanted[loads[count] :]
        if all(item.tier is None for item in wanted):
            return []
        return wanted

    def _found(self, request: Request, keys: Sequence[bytes], hits: int) -> Iterator[Wanted]:
        size, end = self._pool.block_size, hits * self._pool.block_size
        for key in keys[hits:]:
            block, tier = self._pool.holder(key), self._tiers.holder(key)
            block_key = BlockKey(key, tuple(request.tokens[end : end + size]))
            if block is not None and self._pool.key_of(block) == block_key:
                found = Wanted(block_key, block, None, end + size)
            elif tier is not None and tier.finds(block_key):
                found = Wanted(block_key, None, tier.name, end + size)
            else:
                break
            end = found.end
            yield found
        tail = request.swapped_tail
        if tail is not None and tail.end // size * size == end:
            tier = self._tiers.holder(tail.block_key.hash)
            if tier is not None:
                yield Wanted(tail.block_key, None, tier.name, tail.end)

    def start(self, request: Request, wanted: Sequence[Wanted], blocks: Sequence[int], *, alone: bool) -> None:
        """Start to load; the request has no chunk until all of it is there or has failed.

        Args:
            request: the one that has just been admitted.
            wanted: what `loadable_after` returned.
            blocks: blocks of the request's table, one for each; those whose content is on the device are shared already.
            alone: whether no other request runs that could be held up.
        """
        load = _Load(request, [item.end for item in wanted], [item.tier is None for item in wanted])
        for tier in self._tiers:
            places = [place for place, item in enumerate(wanted) if item.tier == tier.name]
            if places:
                block_keys = [wanted[place].block_key for place in places]
                tier.hold([block_key.hash for block_key in block_keys])
                into = [blocks[place] for place in places]
                transfer = self._in_flight.plan(
                    tier.name, DEVICE, block_keys, into, urgent=alone, request_id=request.request_id
                )
                self._estimate.queued(tier.name, len(places))
                load.places[transfer.transfer_id] = places
        self._loads[request.request_id] = load
        request.loading = True

    def detach(self, request: Request) -> set[int]:
        """The request gives its blocks back. Returns those that are being filled, which stay with their transfers."""
        if not request.loading:
            return set()
        request.loading = False
        transfers = self._loads.pop(request.request_id).places
        return {block for transfer_id in transfers for block in self._in_flight.detach(transfer_id)}

    def arrive(self, request_id: str, result: TransferResult) -> list[FinishedLoad]:
        """One of a request's loads has ended. Returns the request if it was the last."""
        load = self._loads[request_id]
        for place, size in zip(load.places.pop(result.transfer_id), result.sizes, strict=True):
            load.here[place] = size > 0
        if load.places:
            return []
        del self._loads[request_id]
        load.request.loading = False
        self.forget_tail(load.request)
        if load.computed is not None:
            load.request.computed = load.computed
        return [FinishedLoad(load.request, all(load.here))]

    def forget_tail(self, request: Request) -> None:
        """Drop the copy of a partly filled block, no other's prefix: useless once it is loaded or its request has ended."""
        tail, request.swapped_tail = request.swapped_tail, None
        if tail is not None and tail.own:
            self._tiers.forget([tail.block_key.hash])

    def check_integrity(self) -> None:
        """Compare the loads with the transfers in flight.

        Raises:
            IntegrityError: names the first contradiction.
        """
        waited_for = {each.transfer.transfer_id: each.request_id for each in self._in_flight if each.request_id}
        loading = {transfer_id: name for name, load in self._loads.items() for transfer_id in load.places}
        if waited_for != loading:
            raise IntegrityError(f"requests wait for transfers {loading}, in flight for one are {waited_for}")
        for name, load in self._loads.items():
            if not load.request.loading or load.request.request_id != name or not load.places:
                raise IntegrityError(f"{name} waits for loads and does not load: {load.request}")
