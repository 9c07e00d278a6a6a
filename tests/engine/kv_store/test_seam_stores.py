"""A tier is one more entry in a list: a store that only this file knows, below, between and above those of the project.

A dictionary plays the part of a machine beside this one. It has only the methods of `BlockStore` and says what it can do.
"""

import shutil
import threading
from random import Random

import numpy as np
import pytest
import torch

from configs.settings import Settings
from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.record import size_of
from engine.kv_store.host import HostStore
from engine.kv_store.store import BlockStore, Capabilities, Kept, StoreLost
from engine.kv_store.tiers import TierEntry, tiers_of
from engine.kv_store.transfer import TransferWorker
from engine.start import Starter
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.tier_list import TierList
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.types.block_hash import BlockKey, block_hash, root_hash
from scheduler.types.messages import AddRequest, Shutdown, StepOutputs
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.transfers import DEVICE, TierChanges, Transfer
from tests.engine.kv_store.test_tiers_walk import RowsWorker
from tests.engine.test_seam_backend import ToyBackend, Wire, source
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB
from tests.scheduler.test_random_walk import PREFIXES

__all__ = ["source"]  # a fixture
SIZE = 64


class PeerStore(BlockStore):
    """Blocks at a peer, by name, which others may put and drop, too; `lost` is a wire that is cut."""

    capabilities = Capabilities(shared=True, survives=True)

    def __init__(self, contents=None):
        self.contents = {} if contents is None else contents
        self.known = set(self.contents)
        self.dropped = []
        self.lost = False

    def put(self, block_keys, rows):
        self.check_wire()
        for block_key, row in zip(block_keys, rows.ids, strict=True):
            self.contents.setdefault(block_key, bytes(rows.pool[row].numpy()))
        return [len(self.contents[block_key]) for block_key in block_keys]

    def get(self, block_keys, rows):
        self.check_wire()
        for block_key, row in zip(block_keys, rows.ids, strict=True):
            if block_key in self.contents:
                rows.pool[row] = torch.frombuffer(bytearray(self.contents[block_key]), dtype=torch.uint8)
        return [block_key in self.contents for block_key in block_keys]

    def drop(self, keys):
        gone = set(keys)
        self.dropped += gone
        for block_key in [each for each in self.contents if each.hash in gone]:
            del self.contents[block_key]

    def kept(self):
        return [Kept(block_key, len(content)) for block_key, content in self.contents.items()]

    def changes(self):
        self.check_wire()
        here, before = dict(self.contents), self.known
        self.known = set(here)
        came = [(block_key, len(content)) for block_key, content in here.items() if block_key not in before]
        return TierChanges(came, [block_key.hash for block_key in before if block_key not in here])

    def close(self):
        """The peer goes on."""

    def check_wire(self):
        if self.lost:
            raise StoreLost("the wire is cut")


def named(name, blocks, size=SIZE):
    return TierIndex(name, blocks * size, size, eviction_of("lru", blocks), shared=name == "peer")


class Stack:
    """A pool of named blocks with random bytes over a host, a disk and a peer."""

    def __init__(self, folder, *, host=40, disk=40, peer=40):
        self.pool = BlockPool(16, 2)
        self.rows = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (16, SIZE), dtype=np.uint8))
        self.peer = PeerStore()
        slot = size_of(SIZE)
        self.stores = {
            "host": HostStore(host, SIZE),
            "disk": DiskStore(folder, block_bytes=SIZE, fingerprint="seam", limit_bytes=disk * slot),
            "peer": self.peer,
        }
        self.planner = TransferPlanner(
            self.pool, [named("host", host), named("disk", disk, slot), named("peer", peer)], preemption="swap"
        )
        self.woken = threading.Event()
        self.worker = TransferWorker(self.rows, self.stores, self.woken.set)
        self.keys, parent = [], root_hash("seam")
        for block in self.pool.allocate(16):
            parent = block_hash(parent, [block, 0])
            self.pool.publish(block, parent, [block, 0])
            self.pool.release([block])
            self.keys.append(BlockKey(parent, (block, 0)))

    def settle(self):
        """Until nothing is left to transfer."""
        while self.planner.busy:
            self.planner.plan_saves()
            self.worker.start(self.planner.take())
            assert not self.planner.in_flight or self.woken.wait(30)
            self.woken.clear()
            for result in self.worker.finished():
                self.planner.absorb(result)
            self.planner.check_integrity()

    def load(self, tier, blocks):
        """Bring the contents of these blocks back from a tier into the same blocks; returns what has arrived."""
        keys = [self.keys[block] for block in blocks]
        self.worker.start([Transfer(transfer_id=0, source=tier, target=DEVICE, block_keys=keys, blocks=list(blocks))])
        assert self.woken.wait(30)
        self.woken.clear()
        [result] = self.worker.finished()
        return [size > 0 for size in result.sizes]


@pytest.fixture
def stack(tmp_path):
    stacks = []

    def make(**sizes):
        stacks.append(Stack(tmp_path / f"kv{len(stacks)}", **sizes))
        return stacks[-1]

    yield make
    for each in stacks:
        each.worker.close()


def test_what_is_saved_goes_down_the_whole_list_and_comes_back_exactly(stack):
    tiers = stack()
    before = tiers.rows.clone()
    tiers.planner.released([key.hash for key in tiers.keys])
    tiers.settle()
    assert [tiers.planner.snapshot()[name].saved for name in ("host", "disk", "peer")] == [16, 16, 16]
    for tier in ("peer", "disk", "host"):
        tiers.rows.zero_()
        assert tiers.load(tier, range(16)) == [True] * 16
        assert torch.equal(tiers.rows, before), tier


def test_small_tiers_pass_on_what_they_still_have(stack):
    """A spill reads what is still in the tier above: what that evicted before is not waited for, and nothing is made up."""
    tiers = stack(host=4, disk=8)
    before = tiers.rows.clone()
    tiers.planner.released([key.hash for key in tiers.keys])
    tiers.settle()
    stats = tiers.planner.snapshot()
    assert (stats["host"].blocks, stats["host"].saved) == (4, 16)
    assert 4 <= stats["peer"].saved <= stats["disk"].saved < 16
    there = [block for block, key in enumerate(tiers.keys) if key in tiers.peer.contents]
    assert len(there) == stats["peer"].blocks
    tiers.rows.zero_()
    assert all(tiers.load("peer", there)) and torch.equal(tiers.rows[there], before[there])
    for store in tiers.stores.values():
        store.check_integrity()


@pytest.mark.parametrize("lost", ["host", "disk", "peer"])
def test_a_tier_that_is_lost_takes_no_other_with_it(stack, lost):
    tiers = stack()
    tiers.planner.released([key.hash for key in tiers.keys[:8]])
    tiers.settle()
    tiers.planner.tiers.mark_lost(lost)
    tiers.planner.released([key.hash for key in tiers.keys[8:]])
    tiers.settle()
    saved = {name: stats.saved for name, stats in tiers.planner.snapshot().items()}
    assert saved == {name: 8 if name == lost else 16 for name in ("host", "disk", "peer")}
    assert tiers.planner.snapshot()[lost].blocks == 0


def test_what_another_process_dropped_is_gone_and_nothing_else(stack):
    tiers = stack()
    tiers.planner.released([key.hash for key in tiers.keys])
    tiers.settle()
    before = tiers.rows.clone()
    tiers.peer.drop([tiers.keys[1].hash])
    tiers.rows[0].zero_()
    assert tiers.load("peer", [0, 1]) == [True, False]
    assert torch.equal(tiers.rows[0], before[0])


def test_a_store_without_contiguous_rows_lends_none():
    with pytest.raises(NotImplementedError, match="PeerStore"):
        PeerStore().lend([])


@pytest.mark.parametrize("names", [["peer", "peer"], ["device"]])
def test_tiers_need_names_of_their_own(names):
    with pytest.raises(ValueError, match="names of their own"):
        TierList([named(name, 1) for name in names])


class PeerTier(TierEntry):
    """The peer, as the start is given it."""

    name = "peer"
    capacity = 2**20
    bandwidth = 1e9

    def __init__(self, peer):
        self.peer = peer

    def open(self, device):
        self.device = device
        return self.peer


class TierWire(Wire):
    """Stops the engine when its request has ended and the peer has both full blocks."""

    def __init__(self, prompt, peer):
        super().__init__(AddRequest(request_id="r", prompt_ids=prompt, sampling=SamplingParams(max_tokens=2)))
        self.peer = peer

    def receive(self):
        there = len(self.peer.contents) == 2
        yield from (message for message in super().receive() if there or not isinstance(message, Shutdown))

    @property
    def tiers(self):
        return next(event for event in reversed(self.events) if isinstance(event, StepOutputs)).stats.tiers


@pytest.mark.parametrize("own", [True, False], ids=["below the others", "alone"])
def test_a_tier_of_ones_own_is_one_more_entry_of_the_real_start(source, tmp_path, own):
    """Saved down the whole list by one engine, found by the next one, and loaded."""
    peer, prompt = PeerStore(), [7] * 40
    settings = Settings(kv_host_gib=0.001, kv_disk_path=str(tmp_path / "kv")) if own else Settings()
    names = {"host", "disk", "peer"} if own else {"peer"}
    for turn in range(2):
        wire, made, entry = TierWire(prompt, peer), [], PeerTier(peer)
        starter = Starter(
            settings,
            source,
            wire,
            choose=lambda startup, made=made: made.append(ToyBackend(startup)) or made[0],
            tiers=lambda settings, entry=entry: [*tiers_of(settings), entry],
        )
        loop, _ = starter.start()
        (backend,) = made
        assert [tier.name for tier in backend.startup.tiers][-1] == "peer" and len(backend.startup.tiers) == len(names)
        assert entry.device.rows is backend.worker.blocks
        backend.worker.blocks.random_(generator=torch.Generator().manual_seed(turn))
        loop.run()
        starter.close()
        assert set(wire.tiers) == names and all(stats.up for stats in wire.tiers.values())
        if own and not turn:
            shutil.rmtree(tmp_path / "kv")
    assert wire.tiers["peer"].loaded == len(peer.contents) == 2
    rows = [bytes(row.numpy()) for row in backend.worker.blocks]
    assert all(content in rows for content in peer.contents.values())


class Walk:
    """A scheduler over three tiers in any order, whose peer forgets and fails."""

    def __init__(self, folder, rng):
        self.rng = rng
        self.woken = threading.Event()
        blocks = rng.randint(4, 14)
        worker = RowsWorker(blocks)
        size = worker.rows.shape[1]
        slots = {name: rng.choice([2, 6, 40]) for name in ("host", "disk", "peer")}
        self.peer = PeerStore()
        stores = {
            "host": HostStore(slots["host"], size),
            "disk": DiskStore(
                folder, block_bytes=size, fingerprint="walk", limit_bytes=slots["disk"] * size_of(size), depth=2
            ),
            "peer": self.peer,
        }
        self.order = rng.sample(sorted(stores), 3)
        tiers = [named(name, slots[name], size_of(size) if name == "disk" else size) for name in self.order]
        self.transfer_worker = TransferWorker(worker.rows, stores, self.woken.set, follow_seconds=0.0)
        self.engine = Engine(
            blocks=blocks,
            worker=worker,
            max_step_tokens=rng.choice([3, 7, 16, 64]),
            max_running=rng.randint(1, 6),
            tiers=lambda pool, _: (TransferPlanner(pool, tiers, preemption="swap"), self.transfer_worker),
            depth=rng.choice([1, 2]),
            seed=rng.randrange(2**16),
        )
        self.engine.stalled = self.wait

    def wait(self):
        assert self.woken.wait(30), "a transfer that never ends"
        self.woken.clear()

    def run(self):
        for number in range(40):
            tail = [self.rng.randrange(VOCAB) for _ in range(self.rng.randint(1, 9))]
            prompt, tokens = [*self.rng.choice(PREFIXES), *tail], self.rng.randint(0, 6)
            if len(prompt) + tokens <= self.engine.config.context:
                self.engine.add(f"r{number}", prompt, max_tokens=tokens)
            if number % 7 == 6:
                for block_key in self.rng.sample(sorted(self.peer.contents), len(self.peer.contents) // 3):
                    self.peer.contents.pop(block_key, None)
            self.peer.lost = self.peer.lost or self.rng.random() < 0.005
            for _ in range(self.rng.randint(1, 9)):
                self.engine.tick()
            self.engine.scheduler.check_integrity()
        self.engine.drain(20000)
        self.engine.check_outputs()
        return self.engine.scheduler.snapshot().tiers


def test_walks_over_three_tiers_in_any_order(tmp_path):
    total = dict.fromkeys(("host", "disk", "peer"), 0)
    for seed in range(24):
        walk = Walk(tmp_path / str(seed), Random(seed))
        try:
            for tier, stats in walk.run().items():
                total[tier] += stats.loaded
        finally:
            walk.transfer_worker.close()
    assert min(total.values()) > 5, total
