"""KV below the device, from the scheduler's side: one object that the scheduler asks.

One operation serves prefix reuse, swapping, and reuse after a restart: *make these contents resident there*. A plan collects
transfers, the next step to start carries them (`Step.transfers`), the transfer worker does them beside the computation, and
`absorb` takes in the results. Until then a transfer's blocks are its own.

    load_planner           which contents a waiting request loads, and what it still waits for
    save_planner           what is saved, swapped out, handed over, and copied from tier to tier
    expected_kv            which requests wait for what another engine saves
    flush_planner          what is saved before an orderly stop
    transfers_in_flight    the transfers without a result, and the blocks that they hold
    tier_list              the tiers, fastest first, with their books (`tier_index`)

What belongs here: which part learns what, and in which order. Never: bytes, I/O, which request runs, the name of a tier.
"""

from collections.abc import Iterable, Mapping, Sequence

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.tiers.expected_kv import ExpectedKv
from scheduler.kv.tiers.flush_planner import FlushPlanner
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.load_planner import FinishedLoad, LoadPlanner, Wanted
from scheduler.kv.tiers.save_planner import Preemption, SavePlanner
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.tier_list import TierList
from scheduler.kv.tiers.transfers_in_flight import TransfersInFlight
from scheduler.types.block_hash import BlockKey
from scheduler.types.messages import TierStats
from scheduler.types.request import Request
from scheduler.types.step import ChunkPhase, Step
from scheduler.types.transfers import DEVICE, TierChanges, Transfer, TransferResult


class TransferPlanner:
    """All transfers of one device. Without any tier below it, it plans nothing and costs nothing.

    Args:
        pool: the device's.
        tiers: the books of each tier, fastest first.
        estimate: says whether a transfer pays.
        preemption: what is done with the blocks of a preempted request: `swap` saves them, `recompute` does not, `auto` saves
            them if that is faster.
        protect: whether the blocks of running requests are saved as they become full.

    Attributes:
        tiers: those that are up.
        expected: requests that wait for what another engine saves.
        flush: what is saved before an orderly stop.

    Raises:
        ValueError: two tiers have the same name.
    """

    def __init__(
        self,
        pool: BlockPool,
        tiers: Sequence[TierIndex] = (),
        estimate: LoadOrRecompute | None = None,
        preemption: Preemption = "auto",
        *,
        protect: bool = False,
    ) -> None:
        self.tiers = TierList(tiers)
        self._pool = pool
        self._in_flight = TransfersInFlight(self.tiers)
        self._estimate = estimate or LoadOrRecompute(1, pool.block_size, telling_tokens=pool.block_size)
        self._loads = LoadPlanner(pool, self.tiers, self._in_flight, self._estimate)
        self._saves = SavePlanner(pool, self.tiers, self._in_flight, self._estimate, preemption)
        self._protect = protect
        self.expected = ExpectedKv(pool, self.tiers)
        self._returning: dict[str, list[TierChanges]] = {}  # lost tiers that are back, and what is known of them
        self.flush = FlushPlanner(pool, self.tiers, self._in_flight, self._estimate)

    # --- how things stand ---

    @property
    def active(self) -> bool:
        """Whether there is any tier."""
        return len(self.tiers) > 0

    @property
    def busy(self) -> bool:
        """Whether transfers are under way or wait to be planned."""
        return self.in_flight or self._saves.busy or any(tier.has_word for tier in self.tiers)

    def steady(self, running: Iterable[Request]) -> bool:
        """Whether nothing is under way or becomes due while these requests only decode."""
        if not self.active:
            return True
        quiet = not (self._protect or self.busy or len(self.expected))
        return quiet and not any(request.hand_over for request in running)

    @property
    def frees_soon(self) -> bool:
        """Whether blocks that a request gave up will be available when their transfers have ended."""
        return self._in_flight.yielded

    @property
    def holds_blocks(self) -> bool:
        """Whether any transfer has blocks of its own, for whatever reason."""
        return any(self._in_flight.held)

    @property
    def in_flight(self) -> bool:
        """Whether a result is still to come."""
        return len(self._in_flight) > 0

    def held(self) -> list[list[int]]:
        """Device blocks that transfers hold, a list for each transfer."""
        return self._in_flight.held

    @property
    def moves(self) -> list[Transfer]:
        """The transfers without a result."""
        return [active.transfer for active in self._in_flight]

    def snapshot(self) -> Mapping[str, TierStats]:
        """The counters by the tiers' names, with gauges brought up to date."""
        tiers = self.tiers.snapshot()
        for name, stats in tiers.items():
            stats.block_load_seconds = self._estimate.block_seconds(name)
        return tiers

    # --- what the scheduler reports ---

    def on_lookup(self, keys: Sequence[bytes]) -> None:
        """A new request can use these contents, which form a prefix: eviction may learn from that."""
        self.tiers.on_lookup(keys)

    def pin(self, keys: Sequence[bytes], until: float) -> None:
        """Keep these contents, which form a prefix, until then, whether they are here or yet to come."""
        self.tiers.pin(keys, until)

    def expire(self, now: float) -> None:
        """End the pins whose time has come."""
        self.tiers.expire(now)

    def on_step(self, step: Step, seconds: float) -> None:
        """A step ended: it may show what a prompt token costs."""
        if self.active:
            prompts = sum(chunk.length for chunk in step.chunks if chunk.phase is ChunkPhase.PREFILL)
            self._estimate.on_step(prompts, step.tokens, seconds)

    def ended(self, request: Request) -> None:
        """The request has ended: drop what only it could use."""
        self._loads.forget_tail(request)
        self.expected.drop(request)

    def forget(self, keys: Iterable[bytes]) -> None:
        """These contents are in doubt: no tier serves them from now on."""
        self.tiers.forget(keys)

    # --- loads ---

    def loadable_after(self, request: Request, keys: Sequence[bytes], hits: int) -> list[Wanted]:
        """What to load after the request's first `hits` blocks, as far as loading is faster than computing."""
        return self._loads.loadable_after(request, keys, hits)

    def load(self, request: Request, wanted: Sequence[Wanted], blocks: Sequence[int], *, alone: bool) -> None:
        """Start to load what `loadable_after` returned into these blocks; `alone`: no other request runs that could be held up."""
        self._loads.start(request, wanted, blocks, alone=alone)

    def detach(self, request: Request) -> set[int]:
        """The request gives its blocks back. Returns those that are being filled, which stay with their transfers."""
        return self._loads.detach(request)

    def expect(self, request: Request, keys: Sequence[bytes], until: float) -> None:
        """Another engine still saves the request's blocks, by their hashes, and perhaps its `swapped_tail`. It is not admitted
        before they are there, or that time has come."""
        tail = request.swapped_tail
        self.expected.add(request, [*keys, tail.block_key.hash] if tail is not None else keys, until)

    # --- saves ---

    def released(self, keys: Iterable[bytes]) -> None:
        """Blocks of a request that ended were released: they are saved when there is time."""
        self._saves.released(keys)

    def swaps(self) -> bool:
        """Whether the blocks of a preempted request are to be saved."""
        return self._saves.swaps()

    def swap_out(self, keys: Sequence[bytes], tail: tuple[BlockKey, int] | None) -> None:
        """Save what a preempted request has just released: full blocks by their hashes, and a partly filled last block.

        Raises:
            ValueError: there is no tier; ask `swaps` first.
        """
        self._saves.swap_out(keys, tail)

    def hand_over(self, keys: Sequence[bytes], tail: tuple[BlockKey, int] | None) -> None:
        """Save at once what is not saved yet of a request that another engine goes on with. It has just released its full blocks,
        by their hashes; the block of its `tail`, a partly filled last one, belongs to the transfer."""
        self._saves.hand_over(keys, tail)

    def plan_saves(self, running: Iterable[Request] = ()) -> None:
        """Plan saves for some of what waits, and of what has become full of running requests that are to be handed over (or of
        all, if they are protected). To be called before the step has any chunk."""
        if self.active:
            for request in running:
                if (self._protect or request.hand_over) and request.published > request.offered:
                    fresh = request.block_hashes[request.offered : request.published]
                    request.offered = request.published
                    self._saves.filled(fresh, urgent=request.hand_over)
        self._saves.plan()
        self._in_flight.plan_drops()

    # --- transfers start and end ---

    def take(self) -> list[Transfer]:
        """The transfers planned since the last call, for the step with which they start."""
        return self._in_flight.take()

    def cancel(self, transfers: Iterable[Transfer]) -> list[FinishedLoad]:
        """Take back transfers that were planned and never started. Returns the requests that need no longer wait."""
        arrivals: list[FinishedLoad] = []
        transfers = list(transfers)
        for transfer in transfers:
            sizes = [0] * len(transfer.block_keys)
            arrivals += self.absorb(TransferResult(transfer_id=transfer.transfer_id, sizes=sizes))
        for transfer in transfers:  # only now: another of these transfers may have reserved what this one was to drop
            lower = self.tiers.get(transfer.lower)
            if lower is not None:
                lower.drop_again(transfer.drops)
                lower.pin_again(transfer.pins)
        return arrivals

    def absorb(self, result: TransferResult) -> list[FinishedLoad]:
        """Enter the result of a transfer. Returns the requests that need no longer wait."""
        active = self._in_flight.end(result.transfer_id)
        transfer = active.transfer
        if transfer.target == DEVICE:
            self._estimate.queued(transfer.source, -len(transfer.block_keys))
            self._estimate.on_transfer(transfer.source, sum(size > 0 for size in result.sizes), result.seconds)
        self.tiers.record(transfer, result)
        self._saves.on_arrival(transfer, result)
        if result.lost is not None:
            self.tiers.mark_lost(result.lost)
        self._pool.release(active.held)
        self._take_up()
        return [] if active.request_id is None else self._loads.arrive(active.request_id, result)

    # --- what others do to tiers ---

    def follow(self, name: str, changes: TierChanges) -> None:
        """Others have put and dropped contents in a tier."""
        if name in self._returning:
            self._returning[name].append(changes)
        else:
            self.tiers.follow(name, changes)

    def take_up(self, name: str, kept: Sequence[tuple[BlockKey, int]]) -> None:
        """A lost tier is back, with these contents: it is used again once the transfers that were under way have failed."""
        self._returning[name] = [TierChanges(kept, [])]
        self._take_up()

    def _take_up(self) -> None:
        for name in [name for name in self._returning if not self._in_flight.concern(name)]:
            self.tiers.mark_back(name)
            for changes in self._returning.pop(name):
                self.tiers.follow(name, changes)

    # --- invariants ---

    def check_integrity(self) -> None:
        """Compare the books of all tiers and the loads with the transfers in flight.

        Raises:
            IntegrityError: names the first contradiction.
        """
        self.tiers.check_integrity([active.transfer for active in self._in_flight])
        self._loads.check_integrity()
