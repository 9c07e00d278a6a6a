"""The scheduler's random walk over the real stores and the real transfer worker: every read is checked against what it must hold.

KV is a hash of the prefix it stands for (`tests/scheduler/sim_worker.py`), here in rows of memory, so that the host store, disk
slots and their threads carry it. Disks are slow, short, failing and full as the walk goes on; transfers are aborted under way.
"""

import errno
import threading
from random import Random

import numpy as np
import pytest
import torch

from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.record import size_of
from engine.kv_store.host import HostStore
from engine.kv_store.transfer import TransferWorker
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from tests.engine.kv_store.disk.disk_parts import Faulty, Shrink
from tests.scheduler.drawn_map import check_map
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB, SimWorker
from tests.scheduler.test_random_walk import PREFIXES

BLOCK = 4  # tokens, of 8 bytes each


class RowsWorker(SimWorker):
    """Blocks are rows of memory, as a device's are."""

    def __init__(self, blocks):
        super().__init__(blocks, BLOCK)
        self.kv = np.full((blocks, BLOCK), -1, np.int64)
        self.rows = torch.from_numpy(self.kv).view(torch.uint8)


class Walk:
    """One walk: an engine over stores of random sizes, and what clients and disks do to it."""

    def __init__(self, folder, rng):
        self.rng = rng
        self.disk = Faulty()
        self.woken = threading.Event()
        blocks = rng.randint(4, 14)
        worker = RowsWorker(blocks)
        self.stores, indices = {}, {}
        size = worker.rows.shape[1]
        kind = rng.choice(["host", "disk", "both", "both"])
        if kind != "disk":
            host = rng.choice([1, 3, 8, 30])
            self.stores["host"] = HostStore(host, size)
            indices["host"] = self.index("host", host, size)
        if kind != "host":
            slots, slot = rng.choice([2, 8, 60]), size_of(size)
            self.stores["disk"] = store = DiskStore(
                folder, block_bytes=size, fingerprint="walk", limit_bytes=slots * slot,
                codecs=[Shrink()], filesystem=self.disk, depth=2,
            )  # fmt: skip
            store.codec = rng.choice([None, Shrink()])
            indices["disk"] = self.index("disk", slots, slot)
        self.transfer_worker = TransferWorker(worker.rows, self.stores, self.woken.set)
        self.engine = Engine(
            blocks=blocks,
            worker=worker,
            max_step_tokens=rng.choice([1, 3, 7, 16, 64]),
            max_running=rng.randint(1, 6),
            max_preemptions=rng.randint(0, 3),
            scheduling=rng.choice(["priority", "fair"]),
            tiers=lambda pool, _: (
                TransferPlanner(pool, list(indices.values()), preemption="swap"),
                self.transfer_worker,
            ),
            depth=rng.choice([1, 2]),
            seed=rng.randrange(2**16),
        )
        self.engine.stalled = self.wait
        self.count = 0

    def index(self, tier, count, size):
        return TierIndex(tier, count * size, size, eviction_of(self.rng.choice(["lru", "predicted"]), count))

    def wait(self):
        assert self.woken.wait(30), "a transfer that never ends"
        self.woken.clear()

    def act(self):
        choices = [
            self.ask,
            self.ask,
            self.ask_again,
            self.ask_again,
            self.fill,
            self.abort,
            self.fail_step,
            self.trouble,
        ]
        self.rng.choice([*choices, self.run, self.run, self.run])()
        self.engine.scheduler.check_integrity()
        check_map(self.engine.scheduler)

    def add(self, prompt, **sampling):
        tokens = sampling.setdefault("max_tokens", self.rng.randint(0, 12))
        if len(prompt) + tokens <= self.engine.config.context:
            priority, tenant = self.rng.choice([0, 0, 1, -1]), self.rng.choice("ab")
            self.engine.add(f"r{self.count}", prompt, priority=priority, tenant=tenant, **sampling)
            self.count += 1

    def ask(self):
        tail = [self.rng.randrange(VOCAB) for _ in range(self.rng.randint(1, 14))]
        self.add([*self.rng.choice(PREFIXES), *tail])

    def ask_again(self):
        """An earlier prompt, or the next turn behind it."""
        asked = self.engine.requests.get(f"r{self.rng.randrange(max(1, self.count))}")
        if asked is not None:
            turn = [*self.engine.outputs[asked.request_id], self.rng.randrange(VOCAB)]
            self.add(self.rng.choice([asked.prompt_ids, asked.prompt_ids + turn]))

    def fill(self):
        """Push what is cached out of the pool."""
        self.add([self.rng.randrange(VOCAB)] * (self.engine.config.context - 3), max_tokens=2)

    def abort(self):
        victim = f"r{self.rng.randrange(max(1, self.count))}"
        self.engine.tick(meanwhile=lambda: self.engine.abort(victim))

    def fail_step(self):
        self.engine.fail_step()

    def trouble(self):
        self.disk.delay = self.rng.choice([0.0, 0.0, 0.002])
        self.disk.read_faults = [self.rng.choice([None, errno.EIO, -10]) for _ in range(self.rng.randint(0, 3))]
        self.disk.write_faults = [self.rng.choice([None] * 9 + [errno.ENOSPC, errno.EIO])]

    def run(self):
        for _ in range(self.rng.randint(1, 30)):
            self.engine.tick()

    def end(self):
        self.engine.drain(20000)
        self.engine.check_outputs()
        assert self.engine.scheduler.pool.used == 0
        tiers = self.engine.scheduler.snapshot().tiers
        for tier, store in self.stores.items():
            if tiers[tier].up:
                store.check_integrity()
        return tiers


@pytest.fixture(scope="module")
def total():
    """What all walks transferred."""
    counts = {(tier, what): 0 for tier in ("host", "disk") for what in ("loaded", "failed", "down")}
    yield counts
    assert counts["host", "loaded"] > 10 and counts["disk", "loaded"] > 10
    assert counts["disk", "failed"] > 0 and counts["disk", "down"] > 0


@pytest.mark.parametrize("seeds", [range(begin, begin + 10) for begin in range(0, 60, 10)], ids=str)
def test_walk(tmp_path, total, seeds):
    for seed in seeds:
        walk = Walk(tmp_path / str(seed), Random(seed))
        try:
            for _ in range(50):
                walk.act()
            for tier, stats in walk.end().items():
                total[tier, "loaded"] += stats.loaded
                total[tier, "failed"] += stats.failed
                total[tier, "down"] += not stats.up
        finally:
            walk.transfer_worker.close()
