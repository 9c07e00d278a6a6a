"""The scheduler's random walk, by two engines over one keeper with both tiers: every read is checked against what it must hold.

The keeper dies and comes back as the walk goes on; folders are deleted; transfers are aborted under way.
"""

import shutil
import threading
from random import Random

import pytest

from engine.kv_store.disk.record import size_of
from engine.kv_store.transfer import TransferWorker
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from tests.drawn import drawn
from tests.engine.keeper.keepers import KeeperThread
from tests.engine.kv_store.test_tiers_walk import RowsWorker
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB
from tests.scheduler.test_random_walk import PREFIXES


class Member:
    """One of the engines, with what clients do to it."""

    def __init__(self, keeper, rng, eviction):
        self.rng, self.count = rng, 0
        self.woken = threading.Event()
        worker = RowsWorker(rng.randint(4, 14))
        slab, slots = keeper.mapped(), rng.choice([3, 8, 30])
        self.stores = {"host": keeper.host_on(slab), "disk": keeper.disk_on(slab)}
        tiers = [
            TierIndex(
                "host", slots * keeper.size, keeper.size, eviction_of(eviction, slots), survives=True, shared=True
            ),
            TierIndex(
                "disk",
                60 * size_of(keeper.size),
                size_of(keeper.size),
                eviction_of(eviction, 60),
                survives=True,
                shared=True,
            ),
        ]
        self.worker = TransferWorker(worker.rows, self.stores, self.woken.set, follow_seconds=0.0)
        self.engine = Engine(
            blocks=len(worker.rows),
            worker=worker,
            max_step_tokens=rng.choice([3, 7, 16]),
            max_running=rng.randint(1, 4),
            tiers=lambda pool, _: (TransferPlanner(pool, tiers, preemption="swap"), self.worker),
            seed=rng.randrange(2**16),
        )
        self.engine.stalled = lambda: self.woken.wait(10) and self.woken.clear()

    def ask(self):
        tail = [self.rng.randrange(VOCAB) for _ in range(self.rng.randint(1, 14))]
        prompt, tokens = [*self.rng.choice(PREFIXES), *tail], self.rng.randint(0, 8)
        if len(prompt) + tokens <= self.engine.config.context:
            pin = self.rng.choice([0.0, 0.0, 5.0])
            self.engine.add(f"r{self.count}", prompt, max_tokens=tokens, pin_seconds=pin)
            self.count += 1

    def abort(self):
        victim = f"r{self.rng.randrange(max(1, self.count))}"
        self.engine.tick(meanwhile=lambda: self.engine.abort(victim))

    def run(self):
        for _ in range(self.rng.randint(1, 20)):
            self.engine.tick()


@pytest.fixture(scope="module")
def total():
    counts = {"host": 0, "disk": 0, "back": 0, "learned": 0}
    yield counts
    # From which tier is a matter of time: what the dead keeper had may be on the disk alone, or nowhere.
    assert counts["host"] + counts["disk"] > 5 and counts["back"] > 0 and counts["learned"] > 5, counts


def learned(keeper):
    """Contents that a policy which learns from lookups has heard of."""
    if keeper.eviction == "lru" or keeper.keeper._books is None:
        return 0
    return len(keeper.call(lambda: list(keeper.keeper.books._index._policy._policy._known)))


@pytest.mark.parametrize("seed", range(drawn(6)))
def test_walk(tmp_path, seed, total):
    rng = Random(seed)
    eviction = ("lru", "predicted")[seed % 2]
    keeper = KeeperThread(
        tmp_path, eviction=eviction, blocks=8, disk=rng.choice([8, 60]), size=RowsWorker(1).rows.shape[1]
    )
    members = [Member(keeper, rng, eviction) for _ in range(2)]
    try:
        for _ in range(100):
            member = rng.choice(members)
            rng.choice([member.ask, member.ask, member.ask, member.run, member.run, member.abort])()
            if rng.random() < 0.03:
                total["learned"] += learned(keeper)
                keeper.kill()
                if rng.random() < 0.3:
                    shutil.rmtree(tmp_path / "kv", ignore_errors=True)
                keeper.start()
                total["back"] += 1
            member.engine.scheduler.check_integrity()
            keeper.check_integrity()
        for member in members:
            member.engine.drain(20000)
            member.engine.check_outputs()
            for name, stats in member.engine.scheduler.snapshot().tiers.items():
                total[name] += stats.loaded
        keeper.check_integrity()
        total["learned"] += learned(keeper)
    finally:
        for member in members:
            member.worker.close()
        keeper.close()
