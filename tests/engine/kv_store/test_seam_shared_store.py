"""Several engines over one peer: what one saves the others load, and none takes from another what it has no room to remember."""

import threading

import pytest

from configs.settings import Settings
from engine.kv_store.transfer import TransferWorker
from engine.start import Starter
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from tests.engine.kv_store.test_seam_stores import PeerStore, PeerTier, TierWire, named
from tests.engine.kv_store.test_tiers_walk import RowsWorker
from tests.engine.test_seam_backend import ToyBackend, source
from tests.scheduler.sim import Engine
from tests.scheduler.sim_worker import VOCAB

__all__ = ["source"]  # a fixture


class LateWire(TierWire):
    """Brings its request once the engine has heard what is at the peer."""

    def receive(self):
        if not self.waiting or len(self.loop._scheduler.transfers.tiers.get("peer")):
            yield from super().receive()


def test_an_engine_that_runs_hears_what_another_has_saved(source):
    """Both are started over an empty peer."""
    contents, prompt, running = {}, [7] * 40, []
    for kind in (TierWire, LateWire):
        wire = kind(prompt, PeerStore(contents))
        tiers = [PeerTier(wire.peer)]
        starter = Starter(Settings(), source, wire, choose=ToyBackend, tiers=lambda settings, tiers=tiers: tiers)
        wire.loop, _ = starter.start()
        running.append((starter, wire))
    for starter, wire in running:
        wire.loop.run()
        starter.close()
    assert [wire.tiers["peer"].loaded for _, wire in running] == [0, len(contents)] == [0, 2]


class Sharing:
    """One of several engines over one peer, of which it remembers the contents of so many blocks."""

    def __init__(self, contents, remembers=40):
        worker = RowsWorker(24)
        size = worker.rows.shape[1]
        self.woken = threading.Event()
        self.peer = PeerStore(contents)
        self.index = named("peer", remembers, size)
        self.transfer_worker = TransferWorker(worker.rows, {"peer": self.peer}, self.woken.set, follow_seconds=0.0)
        self.engine = Engine(
            blocks=24,
            worker=worker,
            tiers=lambda pool, _: (TransferPlanner(pool, [self.index], preemption="swap"), self.transfer_worker),
        )
        self.engine.stalled = lambda: self.woken.wait(30) and self.woken.clear()

    def serve(self, name, prompt):
        """Serve it, save it, and return how many blocks were loaded for it."""
        before = self.engine.scheduler.snapshot().tiers["peer"].loaded
        self.engine.add(name, prompt, max_tokens=2)
        self.engine.drain(20000)
        self.engine.check_outputs()
        return self.engine.scheduler.snapshot().tiers["peer"].loaded - before

    def hear(self):
        """Ask the peer what is new, and wait for the answer."""
        self.engine.absorb_moves()
        self.transfer_worker._threads["peer", True].submit(lambda: None).result(30)
        self.engine.absorb_moves()


@pytest.fixture
def sharing():
    engines, contents = [], {}

    def make(**options):
        engines.append(Sharing(contents, **options))
        return engines[-1]

    yield make
    for each in engines:
        each.transfer_worker.close()


def test_what_one_engine_saves_another_loads(sharing):
    first, second = sharing(), sharing()
    prompt = [index % VOCAB for index in range(20)]
    assert first.serve("a", prompt) == 0 and len(first.peer.contents) >= 5
    second.hear()
    assert second.serve("b", prompt) == 4, "all but the block of the last token, which is computed always"
    for block_key in list(second.peer.contents):
        del second.peer.contents[block_key]
    first.hear()
    assert len(first.index) == 0, "what went is not asked for"


def test_an_engine_that_forgets_what_a_peer_has_takes_it_from_nobody(sharing):
    small, other = sharing(remembers=3), sharing()
    prompts = [[place] * 12 for place in range(1, 5)]
    for place, prompt in enumerate(prompts):
        small.serve(f"r{place}", prompt)
    assert small.index.evictions > 3 and len(small.index) == 3 and len(small.peer.contents) >= 12
    late = sharing(remembers=2)
    late.peer.known.clear()
    late.hear()
    other.hear()
    assert [other.serve(f"r{place}", prompt) for place, prompt in enumerate(prompts)] == [2] * 4
    for each in (small, late, other):
        assert not each.peer.dropped
        each.engine.scheduler.check_integrity()


def test_a_peer_that_cannot_say_what_is_new_is_asked_no_more_and_goes_on(sharing, caplog):
    engine = sharing()
    engine.peer.changes = lambda: 1 / 0
    for _ in range(3):
        engine.hear()
    assert engine.serve("a", [5] * 9) == 0 and len(engine.peer.contents) >= 2
    assert [record.getMessage() for record in caplog.records] == [
        "KV tier peer does not say what others put there, and is not asked again"
    ]


def test_a_wire_that_is_cut_is_noticed_when_the_peer_is_asked(sharing):
    engine = sharing()
    engine.peer.lost = True
    engine.hear()
    assert not engine.engine.scheduler.snapshot().tiers["peer"].up


def test_a_content_in_doubt_is_dropped_for_all(sharing):
    first, second = sharing(), sharing()
    first.serve("a", [5] * 9)
    second.hear()
    doubtful = [block_key.hash for block_key in first.peer.contents]
    first.engine.scheduler.transfers.forget(doubtful)
    first.serve("another", [6] * 9)
    assert set(first.peer.dropped) == set(doubtful)
    second.hear()
    assert not any(second.index.readable(key) for key in doubtful)
