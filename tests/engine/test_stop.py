"""An orderly stop loses no KV that a surviving tier has room and time for: the real loop over real stores, stopped under way.

KV says whose it is (`tests/scheduler/sim_worker.py`), so what another engine loads afterwards is checked at every read.
"""

import errno
import logging
import re
import threading
import time

import numpy as np
import pytest
import torch

from engine.ipc.channel import Channel
from engine.kv_store.disk.disk_store import DiskStore
from engine.kv_store.disk.record import size_of
from engine.kv_store.host import HostStore
from engine.kv_store.transfer import TransferWorker
from engine.loop import EngineLoop
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.scheduler import Scheduler
from scheduler.types.block_hash import block_hash, root_hash
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import Shutdown
from scheduler.types.sampling_params import SamplingParams
from tests.engine.kv_store.disk.disk_parts import Faulty
from tests.engine.test_loop import BLOCK, WAIT_MS, Client, GatedWorker
from tests.scheduler.sim_worker import expected

pytestmark = pytest.mark.processes

BLOCKS, CONTEXT = 100, 120
SIZE, SLOT = 8 * BLOCK, size_of(8 * BLOCK)
CONFIG = SchedulerConfig(context=CONTEXT, eos_token_ids=frozenset(), fingerprint="sim", max_step_tokens=64)
PROMPTS = {name: [number] * 119 for number, name in enumerate("abcde")}  # three fit into the pool together
FULL = 29  # blocks of a prompt
SAVING = BLOCKS // 8  # of the first prompt, which wait at the disk's gate until the stop comes


class GatedDisk(Faulty):
    """Writes when it is allowed to; each write then takes so many seconds of the engine's clock."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.write_seconds = self.passed = 0.0
        self._lock = threading.Lock()

    def write(self, file, buffers, offset):
        assert self.gate.wait(WAIT_MS / 1000)
        with self._lock:
            self.passed += self.write_seconds
        return super().write(file, buffers, offset)


class Rig:
    """An engine in a thread, over the tiers that are named, the fastest first."""

    def __init__(self, folder, sockets, caplog, *tiers, depth=1, disk_blocks=1000):
        self.caplog, self.disk = caplog, GatedDisk()
        self.client, self.worker = Client(sockets), GatedWorker(depth)
        self.worker.kv = np.full((BLOCKS, BLOCK), -1, np.int64)
        memory = torch.from_numpy(self.worker.kv).view(torch.uint8)
        self.channel, pool = Channel(*self.client.endpoints), BlockPool(BLOCKS, BLOCK)
        stores, self.books = {}, {}
        for name in tiers:
            blocks, size = (1000, SIZE) if name == "host" else (disk_blocks, SLOT)
            stores[name] = HostStore(blocks, SIZE) if name == "host" else self.open(folder, blocks)
            survives = stores[name].capabilities.survives
            policy = eviction_of("lru", blocks)
            self.books[name] = TierIndex(name, blocks * size, size, policy, survives=survives)
            for block_key, taken in stores[name].kept():
                self.books[name].seed(block_key, taken)
        self.found = sum(map(len, self.books.values()))
        transfers = TransferPlanner(pool, list(self.books.values()))
        self.flush = transfers.flush
        loop = EngineLoop(
            Scheduler(CONFIG, pool, transfers, worker_depth=depth),
            self.worker,
            self.channel,
            transfer_worker=TransferWorker(memory, stores, self.channel.wake),
            clock=lambda: time.monotonic() + self.disk.passed,
            heartbeat=0.01,
        )
        self.thread = threading.Thread(target=loop.run)
        self.thread.start()

    def open(self, folder, blocks):
        limit = blocks * SLOT
        return DiskStore(folder, block_bytes=SIZE, fingerprint="s", limit_bytes=limit, filesystem=self.disk, depth=2)

    def ask(self, name):
        """Answered in full, and right. Returns the blocks that need not be computed."""
        request_id = f"{name} {len(self.client.ends)}"
        self.client.add(request_id, PROMPTS[name], max_tokens=1)
        self.client.until_ended(request_id)
        want = expected(PROMPTS[name], SamplingParams(max_tokens=1, ignore_eos=True), CONTEXT)
        assert self.client.tokens[request_id] == want
        return self.client.ends[request_id].times.cached_tokens // BLOCK

    def tell_to_stop(self, seconds):
        """And wait until the loop knows."""
        self.client.send(Shutdown(flush_seconds=seconds))
        self.wait_for(lambda: "told to stop" in self.caplog.text)

    def wait_for(self, condition):
        for _ in range(WAIT_MS):
            if condition():
                return
            time.sleep(0.001)
        raise AssertionError("it did not come true in time")

    def stop(self, seconds=60.0):
        """Nothing is written to the disk before the loop knows, except where a test has opened the gate."""
        self.tell_to_stop(seconds)
        self.end()

    def end(self):
        """The disk writes only once it is counted what it has to."""
        self.worker.gate.set()
        self.wait_for(lambda: self.flush.target is not None or not self.thread.is_alive())
        self.disk.gate.set()
        self.thread.join(WAIT_MS / 1000)
        assert not self.thread.is_alive()
        self.channel.close()
        self.client.close()

    @property
    def told(self):
        """How many blocks were to be written, how many were, and what became of the others; None if nothing is said."""
        lines = [message for message in self.caplog.messages if message.startswith("stopping: ")]
        if not lines:
            return None
        (line,) = lines
        written, unsaved, rest = re.search(r"wrote (\d+) of (\d+) KV blocks .* in [\d.]+ s(.*)", line).groups()
        return int(written), int(unsaved), rest.removeprefix("; ")


@pytest.fixture
def start(tmp_path, caplog):
    """Starts an engine after the other, on one folder."""
    caplog.set_level(logging.INFO, "headrace.engine")
    rigs = []

    def make(*tiers, **options):
        caplog.clear()
        sockets = tmp_path / f"{len(rigs)}"
        sockets.mkdir()
        rigs.append(Rig(tmp_path / "kv", sockets, caplog, *tiers, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        if rig.thread.is_alive():
            rig.stop(0.0)


def hashes(name):
    """Of the prompt's full blocks, from its head."""
    parent, found = root_hash("sim"), []
    for block in range(FULL):
        parent = block_hash(parent, PROMPTS[name][block * BLOCK : (block + 1) * BLOCK])
        found.append(parent)
    return found


def left(folder, blocks=1000):
    """What the next process would find."""
    store = DiskStore(folder, block_bytes=SIZE, fingerprint="s", limit_bytes=blocks * SLOT)
    found = {kept.block_key.hash for kept in store.kept()}
    store.close()
    return found


@pytest.mark.parametrize("depth", [1, 2], ids=["in turn", "ahead"])
@pytest.mark.parametrize("above", [(), ("host",)], ids=["disk", "host and disk"])
def test_an_answered_prompt_is_there_after_a_stop_at_once(start, above, depth):
    engine = start(*above, "disk", depth=depth)
    assert engine.ask("a") == 0
    engine.stop()
    assert engine.told == (FULL, FULL, "")
    engine = start(*above, "disk", depth=depth)
    assert engine.found == FULL == engine.ask("a")
    engine.stop()
    assert engine.told is None, "all of it was there"


def test_saves_under_way_are_counted_and_finished(start, tmp_path):
    """The tier's thread has one transfer at the gate when the stop comes."""
    engine = start("disk")
    for name in "abc":
        engine.ask(name)
    engine.stop()
    assert engine.told == (3 * FULL, 3 * FULL, "")
    assert left(tmp_path / "kv") == {*hashes("a"), *hashes("b"), *hashes("c")}


def test_what_only_the_tier_between_has_is_written_too(start, tmp_path):
    """The device's blocks are taken by other prompts meanwhile."""
    engine = start("host", "disk")
    for count, name in enumerate(PROMPTS, 1):
        engine.ask(name)
        engine.wait_for(lambda count=count: len(engine.books["host"]) == count * FULL)
    engine.stop()
    assert engine.told == (5 * FULL, 5 * FULL, "")
    assert left(tmp_path / "kv") == {key for name in PROMPTS for key in hashes(name)}


def test_without_time_nothing_is_started_and_the_loss_is_told(start, tmp_path):
    engine = start("disk")
    engine.ask("a")
    engine.stop(0.0)
    written, unsaved, rest = engine.told
    assert unsaved == FULL and rest == f"{FULL - written} are lost: drain_seconds are over"
    assert left(tmp_path / "kv") == set(hashes("a")[:written]), "the save that was under way"


def test_a_step_that_still_runs_takes_of_the_time(start, tmp_path):
    """The server counts from when it told the engine, and kills one that writes for longer."""
    engine = start("disk")
    engine.ask("a")
    while engine.worker.started.acquire(blocking=False):
        pass
    engine.worker.gate.clear()
    engine.client.add("b", PROMPTS["b"], max_tokens=1)
    assert engine.worker.started.acquire(timeout=WAIT_MS / 1000)
    engine.tell_to_stop(20.0)
    engine.disk.passed += 30.0
    engine.end()
    assert engine.told is not None and engine.told[2].endswith("are lost: drain_seconds are over")
    assert left(tmp_path / "kv") == set(hashes("a")[: engine.told[0]]), "the save that was under way"


def test_what_was_used_last_goes_first_until_the_time_is_over(start, tmp_path):
    engine = start("disk")
    engine.disk.write_seconds = 1.0
    for name in "abc":
        engine.ask(name)
    engine.stop(20.0)
    found = left(tmp_path / "kv")
    before = set(hashes("a")[:SAVING])  # takes 12 s
    order = [*hashes("c"), *hashes("b"), *hashes("a")]
    assert found == before | set(order[: len(found - before)])
    assert len(found - before) in (16, 32), "one transfer in time, and perhaps one that had begun"
    assert engine.told == (len(found), 3 * FULL, f"{3 * FULL - len(found)} are lost: drain_seconds are over")


def test_a_small_tier_keeps_what_was_used_last(start, tmp_path):
    engine = start("disk", disk_blocks=60)
    for name in "abc":
        engine.ask(name)
    engine.stop()
    under_way = hashes("a")[:SAVING]
    assert left(tmp_path / "kv", 60) == {*under_way, *hashes("c"), *hashes("b")[: 60 - SAVING - FULL]}
    assert engine.told == (60, 3 * FULL, f"{3 * FULL - 60} are lost: it has no room for them")


def test_the_next_process_knows_what_was_used_last(start, tmp_path):
    engine = start("disk")
    for name in "abc":
        engine.ask(name)
    engine.stop()
    found = left(tmp_path / "kv", FULL)
    assert len(found) == FULL
    assert found >= set(hashes("c")[:-4]), "but for blocks that are written at the same time"


@pytest.mark.parametrize("depth", [1, 2], ids=["in turn", "ahead"])
def test_blocks_of_a_prompt_that_is_cut_off_hold_what_their_names_say(start, depth):
    """Blocks get their names when a step is planned: those of steps that had not run yet must not be written as they are."""
    engine = start("disk", depth=depth)
    engine.worker.gate.clear()
    for name in "abc":
        engine.client.add(name, PROMPTS[name], max_tokens=1)
    assert engine.worker.started.acquire(timeout=WAIT_MS / 1000)
    engine.stop()
    engine = start("disk", depth=depth)
    assert engine.found > 64 // BLOCK, "more than the first step's"
    assert sum(map(engine.ask, "abc")) == engine.found
    engine.stop()


def test_a_tier_that_fails_meanwhile_costs_a_line(start):
    engine = start("host", "disk")
    engine.ask("a")
    engine.disk.write_faults = [errno.ENOSPC]
    engine.stop()
    written, unsaved, rest = engine.told
    assert unsaved == FULL and rest == f"{FULL - written} are lost: the tier failed"


@pytest.mark.parametrize("tiers", [(), ("host",)], ids=["no tier", "a volatile one"])
def test_where_nothing_survives_nothing_is_done(start, tiers):
    engine = start(*tiers)
    engine.worker.gate.clear()
    engine.client.add("a", PROMPTS["a"], max_tokens=1)
    assert engine.worker.started.acquire(timeout=WAIT_MS / 1000)
    engine.stop()
    assert engine.told is None
    assert not engine.worker.started.acquire(blocking=False), "the step that ran is the last"
