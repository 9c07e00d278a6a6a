"""What goes wrong below the device: books of the scheduler and contents of the stores agree afterwards."""

import threading

import numpy as np
import pytest
import torch

from engine.kv_store.host import HostStore
from engine.kv_store.store import StoreLost
from engine.kv_store.transfer import Mover
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tier_index import TierIndex
from scheduler.kv.transfer_planner import Tiers
from scheduler.types.block_hash import block_key, root_key
from scheduler.types.transfers import Move, Tier

SIZE = 64
BLOCKS = 40


class Refusing:
    """A disk that does as it is told: keep, keep nothing, or raise."""

    def __init__(self):
        self.outcome = "keeps"
        self.contents = {}

    def put(self, labels, rows):
        """See `BlockStore`."""
        if self.outcome == "keeps":
            self.contents |= {label.key: rows.pool[row].clone() for label, row in zip(labels, rows.ids, strict=True)}
            return [SIZE] * len(labels)
        if self.outcome == "refuses":
            return [0] * len(labels)
        raise StoreLost("full") if self.outcome == "is lost" else RuntimeError("a defect")

    def drop(self, keys):
        """See `BlockStore`."""
        for key in keys:
            self.contents.pop(key, None)

    def close(self):
        """See `BlockStore`."""


class Rig:
    """A pool full of named blocks, two tiers, and the mover between them."""

    def __init__(self, host_blocks):
        self.pool = BlockPool(BLOCKS, 2)
        self.rows = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (BLOCKS, SIZE), dtype=np.uint8))
        self.host, self.disk = HostStore(host_blocks, SIZE), Refusing()
        self.indices = {
            tier: TierIndex(tier, blocks * SIZE, SIZE, eviction_of("lru", blocks))
            for tier, blocks in ((Tier.HOST, host_blocks), (Tier.DISK, 100))
        }
        self.tiers = Tiers(self.pool, self.indices)
        self.woken = threading.Event()
        self.mover = Mover(self.rows, {Tier.HOST: self.host, Tier.DISK: self.disk}, self.woken.set)
        self.keys = []

    def fill(self):
        """Name and release all blocks."""
        key = root_key("mover")
        for block in self.pool.allocate(BLOCKS):
            key = block_key(key, [block, 0])
            self.pool.publish(block, key, [block, 0])
            self.pool.release([block])
            self.keys.append(key)

    def move(self):
        """Until nothing is left to move."""
        while self.tiers.busy:
            self.tiers.plan_saves()
            self.mover.start(self.tiers.take())
            assert not self.tiers.moving or self.woken.wait(30)
            self.woken.clear()
            for result in self.mover.finished():
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
        each.mover.close()


@pytest.mark.parametrize("outcome", ["keeps", "refuses", "is lost", "fails"])
def test_what_the_disk_makes_of_a_spill_costs_the_host_nothing(rig, outcome):
    rigged = rig(16)
    rigged.disk.outcome = outcome
    rigged.tiers.released(rigged.keys[:24])
    rigged.move()
    held = {key for key in rigged.keys if rigged.indices[Tier.HOST].readable(key)}
    assert held == set(rigged.host._entries) and len(held) == 16 - rigged.free_slots() == 16
    assert rigged.tiers.snapshot()[Tier.DISK].up == (outcome != "is lost")
    rigged.host.check_integrity()


def test_a_save_that_fails_half_way_leaves_nothing_behind(rig, monkeypatch):
    rigged = rig(40)
    put, calls = rigged.host.put, []

    def second_fails(labels, rows):
        calls.append(len(labels))
        if len(calls) == 2:
            raise RuntimeError("injected")
        return put(labels, rows)

    monkeypatch.setattr(rigged.host, "put", second_fails)
    rigged.tiers._save(Tier.HOST, rigged.keys)
    rigged.move()
    assert calls == [32, 8]
    rigged.tiers._save(Tier.HOST, rigged.keys[:1])  # drops go with the next move
    rigged.move()
    assert set(rigged.host._entries) == {rigged.keys[0]} and len(rigged.indices[Tier.HOST]) == 1


def test_a_host_that_is_lost_does_not_take_the_disk_with_it(rig):
    rigged = rig(16)
    rigged.tiers.released(rigged.keys[:8])
    rigged.tiers.plan_saves()
    rigged.mover.start(rigged.tiers.take())
    assert rigged.woken.wait(30)
    for result in rigged.mover.finished():
        rigged.tiers.absorb(result)
    rigged.host._lost = "the GPU failed"
    rigged.tiers.released(rigged.keys[8:12])
    rigged.move()
    stats = rigged.tiers.snapshot()
    assert not stats[Tier.HOST].up and stats[Tier.DISK].up


def test_what_cannot_be_read_is_told_as_gone(rig):
    rigged = rig(16)
    labels = [rigged.pool.label(rigged.pool.holder(key)) for key in rigged.keys[:3]]
    rigged.mover.start([Move(move_id=7, source=Tier.HOST, target=Tier.DEVICE, labels=labels, blocks=[0, 1, 2])])
    assert rigged.woken.wait(30)
    [result] = rigged.mover.finished()
    assert (result.sizes, result.gone) == ([0, 0, 0], rigged.keys[:3])
