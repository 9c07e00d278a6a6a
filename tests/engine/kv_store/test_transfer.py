"""What goes wrong below the device: afterwards the scheduler's books and the contents of the stores agree."""

import threading

import numpy as np
import pytest
import torch

from engine.kv_store.host import HostStore
from engine.kv_store.store import BlockStore, StoreLost
from engine.kv_store.transfer import TransferWorker
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.types.block_hash import block_hash, root_hash
from scheduler.types.transfers import DEVICE, Transfer

SIZE = 64
BLOCKS = 40


class Refusing(BlockStore):
    """A disk that does what the test asks: keep, keep nothing, or raise."""

    def __init__(self):
        self.outcome = "keeps"
        self.contents = {}

    def put(self, block_keys, rows):
        if self.outcome == "keeps":
            self.contents |= {
                block_key.hash: rows.pool[row].clone() for block_key, row in zip(block_keys, rows.ids, strict=True)
            }
            return [SIZE] * len(block_keys)
        if self.outcome == "refuses":
            return [0] * len(block_keys)
        raise StoreLost("full") if self.outcome == "is lost" else RuntimeError("a defect")

    def drop(self, keys):
        for key in keys:
            self.contents.pop(key, None)

    def get(self, block_keys, rows):
        return [False] * len(block_keys)

    def close(self):
        self.contents.clear()


class Rig:
    """A pool full of named blocks, two tiers, and the transfer worker between them."""

    def __init__(self, host_blocks):
        self.pool = BlockPool(BLOCKS, 2)
        self.rows = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (BLOCKS, SIZE), dtype=np.uint8))
        self.host, self.disk = HostStore(host_blocks, SIZE), Refusing()
        self.indices = {
            tier: TierIndex(tier, blocks * SIZE, SIZE, eviction_of("lru", blocks))
            for tier, blocks in (("host", host_blocks), ("disk", 100))
        }
        self.tiers = TransferPlanner(self.pool, list(self.indices.values()))
        self.woken = threading.Event()
        self.transfer_worker = TransferWorker(self.rows, {"host": self.host, "disk": self.disk}, self.woken.set)
        self.keys = []

    def fill(self):
        """Name and release all blocks."""
        key = root_hash("transfer_worker")
        for block in self.pool.allocate(BLOCKS):
            key = block_hash(key, [block, 0])
            self.pool.publish(block, key, [block, 0])
            self.pool.release([block])
            self.keys.append(key)

    def transfer(self):
        """Until nothing is left to transfer."""
        while self.tiers.busy:
            self.tiers.plan_saves()
            self.transfer_worker.start(self.tiers.take())
            assert not self.tiers.in_flight or self.woken.wait(30)
            self.woken.clear()
            for result in self.transfer_worker.finished():
                self.tiers.absorb(result)
            self.tiers.check_integrity()

    def free_slots(self):
        return len(self.host._free)


@pytest.fixture
def rig():
    rigs = []

    def make(host_blocks):
        rigs.append(Rig(host_blocks))
        rigs[-1].fill()
        return rigs[-1]

    yield make
    for each in rigs:
        each.transfer_worker.close()


@pytest.mark.parametrize("outcome", ["keeps", "refuses", "is lost", "fails"])
def test_what_the_disk_makes_of_a_spill_costs_the_host_nothing(rig, outcome):
    rigged = rig(16)
    rigged.disk.outcome = outcome
    rigged.tiers.released(rigged.keys[:24])
    rigged.transfer()
    held = {key for key in rigged.keys if rigged.indices["host"].readable(key)}
    assert held == set(rigged.host._entries) and len(held) == 16 - rigged.free_slots() == 16
    assert rigged.tiers.snapshot()["disk"].up == (outcome != "is lost")
    rigged.host.check_integrity()


def test_a_save_that_fails_half_way_leaves_nothing_behind(rig, monkeypatch):
    rigged = rig(40)
    put, calls = rigged.host.put, []

    def second_fails(block_keys, rows):
        calls.append(len(block_keys))
        if len(calls) == 2:
            raise RuntimeError("injected")
        return put(block_keys, rows)

    monkeypatch.setattr(rigged.host, "put", second_fails)
    rigged.tiers._saves._save(rigged.indices["host"], rigged.keys)
    rigged.transfer()
    assert calls == [32, 8]
    rigged.tiers._saves._save(rigged.indices["host"], rigged.keys[:1])  # drops go with the next transfer
    rigged.transfer()
    assert set(rigged.host._entries) == {rigged.keys[0]} and len(rigged.indices["host"]) == 1


def test_a_host_that_is_lost_does_not_take_the_disk_with_it(rig):
    rigged = rig(16)
    rigged.tiers.released(rigged.keys[:8])
    rigged.tiers.plan_saves()
    rigged.transfer_worker.start(rigged.tiers.take())
    assert rigged.woken.wait(30)
    for result in rigged.transfer_worker.finished():
        rigged.tiers.absorb(result)
    rigged.host._lost = "the GPU failed"
    rigged.tiers.released(rigged.keys[8:12])
    rigged.transfer()
    stats = rigged.tiers.snapshot()
    assert not stats["host"].up and stats["disk"].up


def test_what_cannot_be_read_is_told_as_gone(rig):
    rigged = rig(16)
    block_keys = [rigged.pool.key_of(rigged.pool.holder(key)) for key in rigged.keys[:3]]
    rigged.transfer_worker.start(
        [Transfer(transfer_id=7, source="host", target=DEVICE, block_keys=block_keys, blocks=[0, 1, 2])]
    )
    assert rigged.woken.wait(30)
    [result] = rigged.transfer_worker.finished()
    assert (result.sizes, result.gone) == ([0, 0, 0], rigged.keys[:3])
