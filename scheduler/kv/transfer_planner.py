"""KV below the device, from the scheduler's side: what is loaded, what is saved, and which transfers are under way.

One operation serves prefix reuse, swapping, and life after a restart: *make these contents resident there*. A plan collects
transfers, the step that starts next carries them (`Step.transfers`), the transfer worker does them beside the computation, and
`absorb` books what came of it. Until then a transfer's blocks are its own:

    save    device -> host (or disk)    of a block that was released; held like a reader until it is copied
    load    host or disk -> device      into blocks of a request that waits for them and for nothing else
    spill   host -> disk                of what was saved, so that it outlives the process

A save may be planned only before any chunk of the same step: its content then is what steps before it have written.

What belongs here: transfers and their books. Never: bytes, I/O, which request runs.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.load_or_recompute import LoadOrRecompute
from scheduler.kv.tier_index import TierIndex
from scheduler.types.block_hash import BlockKey
from scheduler.types.messages import TierStats
from scheduler.types.request import Request
from scheduler.types.step import Step
from scheduler.types.transfers import Tier, Transfer, TransferResult

Preemption = Literal["auto", "swap", "recompute"]

_IN_FLIGHT = (
    64  # blocks that may be saved at once, swapping left out: a share of the pool that nobody can use meanwhile
)
_POOL_SHARE = 8  # and at most one block in so many
_SPILL_BLOCKS = 16  # of one transfer to disk; one such transfer at a time, so that a load finds the disk free


class Wanted(NamedTuple):
    """A block of a request's prefix beyond its first missing one, and where its content is."""

    block_key: BlockKey
    block: int | None  # of the device, if it is there
    tier: Tier | None  # else the tier it is loaded from
    end: int  # tokens computed once it and all before it are there


@dataclass(slots=True)
class _Load:
    """A request's loads: of each block from the first missing one whether it is there yet."""

    request: Request
    ends: list[int]
    here: list[bool]
    places: dict[int, list[int]] = field(default_factory=dict)  # of each transfer under way: which blocks it brings

    @property
    def computed(self) -> int | None:
        """Tokens that are there without a gap; None if not even the first block is."""
        leading = next((index for index, here in enumerate(self.here) if not here), len(self.here))
        return self.ends[leading - 1] if leading else None


class Arrival(NamedTuple):
    """A request whose loads have ended. Its `computed` says how far they brought it; not `whole`: something was lost on the way."""

    request: Request
    whole: bool


@dataclass(slots=True)
class _Flight:
    """A transfer under way."""

    transfer: Transfer
    held: list[int]  # device blocks that are the transfer's alone
    leaves: bool = False  # somebody gave way: these blocks are waited for
    request_id: str | None = None  # that waits for it


class TransferPlanner:
    """All tiers below one device. Without any, it plans nothing and costs nothing.

    Args:
        pool: of the device.
        indices: the books of each tier.
        estimate: says whether transferring pays.
        preemption: what is done with the blocks of a preempted request: `swap` saves them, `recompute` does not, `auto` does
            where that is sooner.
    """

    def __init__(
        self,
        pool: BlockPool,
        indices: Mapping[Tier, TierIndex] | None = None,
        estimate: LoadOrRecompute | None = None,
        preemption: Preemption = "auto",
    ) -> None:
        self.stats = {tier: TierStats() for tier in indices or {}}
        self._pool = pool
        self._indices = dict(indices or {})
        self._estimate = estimate or LoadOrRecompute(1, pool.block_size, telling_tokens=pool.block_size)
        self._preemption = preemption
        self._to_save: OrderedDict[bytes, None] = OrderedDict()
        self._to_spill: OrderedDict[bytes, None] = OrderedDict()
        self._flights: dict[int, _Flight] = {}
        self._loads: dict[str, _Load] = {}
        self._planned: list[Transfer] = []
        self._next_id = 0

    @property
    def active(self) -> bool:
        """Whether there is any tier."""
        return bool(self._indices)

    @property
    def busy(self) -> bool:
        """Whether transfers are under way or wait to be planned."""
        waits = self._to_save or self._to_spill or any(index.has_drops for index in self._indices.values())
        return bool(self._flights) or bool(waits)

    @property
    def leaving(self) -> bool:
        """Whether blocks that somebody gave up will be available when their transfers have ended."""
        return any(flight.leaves for flight in self._flights.values())

    @property
    def holding(self) -> bool:
        """Whether any transfer has blocks of its own, for whatever reason."""
        return any(flight.held for flight in self._flights.values())

    @property
    def in_flight(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._flights)

    def asked(self, keys: Sequence[bytes]) -> None:
        """A new request can use these contents, a prefix: eviction may learn from it."""
        for index in self._indices.values():
            index.asked(keys)

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents, a prefix, until then, here or yet to come."""
        for index in self._indices.values():
            index.pin(keys, until)

    def expire(self, now: float) -> None:
        """End the pins whose time has come."""
        for index in self._indices.values():
            index.expire(now)

    def saw_step(self, step: Step, seconds: float) -> None:
        """A step ended: it may tell what a prompt token costs."""
        if self._indices:
            prompts = sum(chunk.length for chunk in step.chunks if chunk.length > 1)
            self._estimate.saw_step(prompts, step.tokens, seconds)

    # --- what a request may load ---

    def beyond(self, request: Request, keys: Sequence[bytes], hits: int) -> list[Wanted]:
        """What to load behind the request's first `hits` blocks, as far as loading is sooner than computing.

        Args:
            request: waits.
            keys: of its blocks that may be reused.
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
            block, tier = self._pool.holder(key), self._tier_of(key)
            if block is None and tier is None:
                break
            block_key = BlockKey(key, tuple(request.tokens[end : end + size]))
            if block is not None and self._pool.key_of(block) == block_key:
                tier = None
            elif tier is not None and self._indices[tier].finds(block_key):
                block = None
            else:
                break
            end += size
            yield Wanted(block_key, block, tier, end)
        tail = request.swapped_tail
        if (
            tail is not None
            and tail.end // size * size == end
            and (tier := self._tier_of(tail.block_key.hash)) is not None
        ):
            yield Wanted(tail.block_key, None, tier, tail.end)

    def _tier_of(self, key: bytes) -> Tier | None:
        return next((tier for tier, index in self._indices.items() if index.readable(key)), None)

    def load(self, request: Request, wanted: Sequence[Wanted], blocks: Sequence[int], *, alone: bool) -> None:
        """Start to load; the request has no chunk until all of it is there or has failed.

        Args:
            request: has just been admitted.
            wanted: as `beyond` said.
            blocks: of the request's table, one for each; those of a content on the device are shared already.
            alone: nobody else runs, who could be held up.
        """
        load = _Load(request, [item.end for item in wanted], [item.tier is None for item in wanted])
        for tier, index in self._indices.items():
            places = [place for place, item in enumerate(wanted) if item.tier is tier]
            if places:
                block_keys = [wanted[place].block_key for place in places]
                index.hold([block_key.hash for block_key in block_keys])
                transfer = self._plan(tier, Tier.DEVICE, block_keys, [blocks[place] for place in places], urgent=alone)
                self._flights[transfer.transfer_id] = _Flight(transfer, [], request_id=request.request_id)
                load.places[transfer.transfer_id] = places
        self._loads[request.request_id] = load
        request.loading = True

    def disown(self, request: Request) -> set[int]:
        """The request gives its blocks back: those that are being filled stay with their transfers. Returns these."""
        if not request.loading:
            return set()
        request.loading = False
        filling = set[int]()
        for transfer_id in self._loads.pop(request.request_id).places:
            flight = self._flights[transfer_id]
            flight.request_id, flight.held, flight.leaves = None, list(flight.transfer.blocks), True
            filling.update(flight.held)
        return filling

    # --- what is saved ---

    def released(self, keys: Iterable[bytes]) -> None:
        """Blocks of a request that ended were released: they are saved when there is time, from the prefix's begin."""
        tier = self._save_tier()
        if tier is None or not self._estimate.pays(tier):
            return
        keys = list(keys)
        there = [key for key in keys if self._indices[tier].knows(key)]
        self.stats[tier].spared += len(there)  # copies that are still valid
        self._indices[tier].touch(there)
        self._to_save.update((key, None) for key in keys if not self._indices[tier].knows(key))

    def swaps(self) -> bool:
        """Whether the blocks of a preempted request are to be saved."""
        tier = self._save_tier()
        if tier is None or self._preemption == "recompute":
            return False
        return self._preemption == "swap" or self._estimate.swap_pays(tier)

    def swap_out(self, keys: Sequence[bytes], tail: tuple[BlockKey, int] | None) -> None:
        """Save what a preempted request has just released, all of it and now.

        Args:
            keys: of its full blocks.
            tail: content and block of its last, partly filled one. The block is the transfer's from now on.
        """
        tier = self._save_tier()
        if tier is None:
            raise ValueError("no tier to save to: `swaps` was not asked")
        self._save(tier, keys, tail, urgent=True)

    def plan_saves(self) -> None:
        """Save some of what waits for it. To be called before the step has any chunk."""
        tier = self._save_tier()
        if tier is None:
            self._to_save.clear()
        elif self._to_save:
            room = min(_IN_FLIGHT, max(1, self._pool.blocks // _POOL_SHARE))
            room -= sum(len(flight.held) for flight in self._flights.values())
            self._save(tier, [self._to_save.popitem(last=False)[0] for _ in range(min(room, len(self._to_save)))])
        self._plan_spill()
        self._plan_drops()

    def _save(
        self, tier: Tier, keys: Iterable[bytes], tail: tuple[BlockKey, int] | None = None, *, urgent: bool = False
    ) -> None:
        index = self._indices[tier]
        block_keys, blocks = list[BlockKey](), list[int]()
        for key in keys:
            block = self._pool.holder(key)
            if block is None:  # evicted meanwhile
                continue
            if index.knows(key):
                self.stats[tier].spared += 1
                continue
            block_key = self._pool.key_of(block)
            if index.reserve(block_key):
                self._pool.share([block])
                block_keys.append(block_key)
                blocks.append(block)
        if tail is not None:
            if index.reserve(tail[0]):
                block_keys.append(tail[0])
                blocks.append(tail[1])
            else:
                self._pool.release([tail[1]])
        if block_keys:
            transfer = self._plan(Tier.DEVICE, tier, block_keys, blocks, urgent=urgent)
            self._flights[transfer.transfer_id] = _Flight(transfer, blocks, leaves=urgent)

    def _plan_spill(self) -> None:
        """From host to disk, where both are."""
        if not self._to_spill or any(flight.transfer.target is Tier.DISK for flight in self._flights.values()):
            return
        host, disk = self._indices.get(Tier.HOST), self._indices.get(Tier.DISK)
        if host is None or disk is None:
            self._to_spill.clear()
            return
        block_keys: list[BlockKey] = []
        while self._to_spill and len(block_keys) < _SPILL_BLOCKS:
            block_key = host.key_of(self._to_spill.popitem(last=False)[0])
            if block_key is not None and disk.reserve(block_key):
                block_keys.append(block_key)
        if block_keys:
            host.hold([block_key.hash for block_key in block_keys])
            transfer = self._plan(Tier.HOST, Tier.DISK, block_keys, [])
            self._flights[transfer.transfer_id] = _Flight(transfer, [])

    def _plan_drops(self) -> None:
        for tier, index in self._indices.items():
            if index.has_drops:
                transfer = self._plan(Tier.DEVICE, tier, [], [])
                self._flights[transfer.transfer_id] = _Flight(transfer, [])

    def _save_tier(self) -> Tier | None:
        return next(iter(self._indices), None)

    # --- transfers ---

    def _plan(
        self, source: Tier, target: Tier, block_keys: list[BlockKey], blocks: list[int], *, urgent: bool = False
    ) -> Transfer:
        transfer = Transfer(
            transfer_id=self._next_id, source=source, target=target, block_keys=block_keys, blocks=list(blocks)
        )
        transfer.urgent, transfer.drops = urgent, self._indices[transfer.lower].take_drops()
        self._next_id += 1
        self._planned.append(transfer)
        if target is Tier.DEVICE:
            self._estimate.queued(source, len(block_keys))
        return transfer

    def take(self) -> list[Transfer]:
        """The transfers planned since the last call: they start with the step that is given them."""
        planned, self._planned = self._planned, []
        return planned

    def cancel(self, transfers: Iterable[Transfer]) -> list[Arrival]:
        """Transfers that were planned and never started; as `absorb`."""
        arrivals: list[Arrival] = []
        transfers = list(transfers)
        for transfer in transfers:
            arrivals += self.absorb(
                TransferResult(transfer_id=transfer.transfer_id, sizes=[0] * len(transfer.block_keys))
            )
        for transfer in transfers:  # what one of them brings another may have dropped
            if transfer.lower in self._indices:
                self._indices[transfer.lower].drop_again(transfer.drops)
        return arrivals

    def absorb(self, result: TransferResult) -> list[Arrival]:
        """Book what a transfer brought. Returns the requests that need wait no longer."""
        flight = self._flights.pop(result.transfer_id)
        if flight.transfer.target is Tier.DEVICE:
            self._estimate.queued(flight.transfer.source, -len(flight.transfer.block_keys))
        self._count(flight.transfer, result)
        self._book(flight.transfer, result)
        if result.lost is not None:
            self._lose(result.lost)
        self._pool.release(flight.held)
        return [] if flight.request_id is None else self._arrive(flight.request_id, result)

    def _count(self, transfer: Transfer, result: TransferResult) -> None:
        arrived, stats = sum(size > 0 for size in result.sizes), self.stats[transfer.lower]
        if transfer.target is Tier.DEVICE:
            stats.loaded += arrived
            stats.load_copies += result.copies
            stats.failed += len(transfer.block_keys) - arrived
            self._estimate.saw_transfer(transfer.lower, arrived, result.seconds)
        else:
            stats.saved += arrived
            stats.save_copies += result.copies

    def _book(self, transfer: Transfer, result: TransferResult) -> None:
        keys = [block_key.hash for block_key in transfer.block_keys]
        source, target = self._indices.get(transfer.source), self._indices.get(transfer.target)
        if source is not None:
            source.let_go(keys)
            source.forget(result.gone)
        if target is not None:
            target.arrived(keys, result.sizes)
            if transfer.target is Tier.HOST:
                whole = (len(block_key.token_ids) == self._pool.block_size for block_key in transfer.block_keys)
                self._note_spills(
                    key for key, size, full in zip(keys, result.sizes, whole, strict=True) if size and full
                )

    def _note_spills(self, keys: Iterable[bytes]) -> None:
        disk = self._indices.get(Tier.DISK)
        if disk is not None and self._estimate.pays(Tier.DISK):
            self._to_spill.update((key, None) for key in keys if not disk.knows(key))

    def _arrive(self, request_id: str, result: TransferResult) -> list[Arrival]:
        load = self._loads[request_id]
        for place, size in zip(load.places.pop(result.transfer_id), result.sizes, strict=True):
            load.here[place] = size > 0
        if load.places:
            return []
        del self._loads[request_id]
        load.request.loading = False
        self._forget_tail(load.request)
        if load.computed is not None:
            load.request.computed = load.computed
        return [Arrival(load.request, all(load.here))]

    def _forget_tail(self, request: Request) -> None:
        """A partly filled block is nobody else's prefix: once it is back, or its request has ended, its copy is useless."""
        if request.swapped_tail is not None:
            self.forget([request.swapped_tail.block_key.hash])
            request.swapped_tail = None

    # --- trouble ---

    def ended(self, request: Request) -> None:
        """The request is finished: what only it could use goes."""
        self._forget_tail(request)

    def forget(self, keys: Iterable[bytes]) -> None:
        """These contents are in doubt: no tier serves them from now on."""
        keys = list(keys)
        for index in self._indices.values():
            index.forget(keys)

    def _lose(self, tier: Tier) -> None:
        """A tier failed as a whole: what is on its way there or back comes to nothing, by results of its own."""
        self._indices.pop(tier, None)
        self.stats[tier].up = False

    def snapshot(self) -> Mapping[Tier, TierStats]:
        """The stats with gauges brought up to date."""
        for tier, stats in self.stats.items():
            index = self._indices.get(tier)
            stats.blocks, stats.bytes = (0, 0) if index is None else (len(index), index.used)
            stats.evicted = stats.evicted if index is None else index.evictions
        return self.stats

    # --- invariants ---

    def held(self) -> list[list[int]]:
        """Device blocks that transfers hold, a list for each transfer."""
        return [flight.held for flight in self._flights.values()]

    def check_integrity(self) -> None:
        """Compare the books of all tiers with the transfers under way.

        Raises:
            IntegrityError: naming the first contradiction.
        """
        transfers = [flight.transfer for flight in self._flights.values()]
        for tier, index in self._indices.items():
            index.check_integrity(
                reading=(
                    block_key.hash
                    for transfer in transfers
                    if transfer.source is tier
                    for block_key in transfer.block_keys
                ),
                arriving=(
                    block_key.hash
                    for transfer in transfers
                    if transfer.target is tier
                    for block_key in transfer.block_keys
                ),
            )
