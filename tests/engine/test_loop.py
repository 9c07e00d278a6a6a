"""The engine's loop over real sockets, with a worker that needs no model."""

import threading
import time

import msgspec
import numpy as np
import pytest
import torch
import zmq

from engine.ipc.channel import Channel
from engine.ipc.failures import DeviceLost
from engine.kv_store.host import HostStore
from engine.kv_store.transfer import TransferWorker
from engine.loop import EngineLoop
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.router.block_index import BlockIndex, HeldBlocks
from scheduler.scheduler import Scheduler
from scheduler.types.block_changes import BlockChanges
from scheduler.types.block_hash import block_names, root_hash
from scheduler.types.config import SchedulerConfig
from scheduler.types.engine_map import EngineMap
from scheduler.types.messages import (
    AbortRequests,
    AddRequest,
    EngineStats,
    FinishReason,
    Heartbeat,
    PublishBlocks,
    PublishMap,
    SequencesStarted,
    Shutdown,
    StepOutputs,
)
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim_worker import SimWorker, expected

pytestmark = pytest.mark.processes

BLOCKS, BLOCK = 32, 4
CONTEXT = BLOCKS * BLOCK
WAIT_MS = 20_000
CONFIG = SchedulerConfig(context=CONTEXT, eos_token_ids=frozenset({7}), fingerprint="sim", max_step_tokens=16)


class GatedWorker(SimWorker):
    """Computes a step when it is allowed to; raises instead for a step with the request named `doomed`, or `lost`.

    With a depth of 2 that happens when the result is asked for, and for `refused` when the step is handed over.
    """

    def __init__(self, depth):
        super().__init__(BLOCKS, BLOCK)
        self.depth = depth
        self.late = lambda: depth > 1
        self.open = self.most_open = 0
        self.started = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, step):
        self.started.release()
        assert self.gate.wait(WAIT_MS / 1000)
        ids = {chunk.request_id for chunk in step.chunks}
        if "lost" in ids:
            raise DeviceLost("injected")
        if ids & {"doomed", "refused"}:
            raise RuntimeError("injected")
        return super().run(step)

    def submit(self, step):
        if self.depth > 1 and any(chunk.request_id == "refused" for chunk in step.chunks):
            raise RuntimeError("injected")
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        return super().submit(step)

    def run_next(self):
        try:
            super().run_next()
        finally:
            self.open -= 1


class Client:
    """The HTTP process's end of the wire."""

    def __init__(self, folder):
        self.endpoints = [f"ipc://{folder}/{name}" for name in ("commands", "events")]
        self._context = zmq.Context()
        self._push, self._pull = self._context.socket(zmq.PUSH), self._context.socket(zmq.PULL)
        self._push.bind(self.endpoints[0])
        self._pull.bind(self.endpoints[1])
        self.blocks = BlockIndex()
        self.maps = []
        self.tokens, self.ends, self.beats, self.started, self.stats = {}, {}, [], [], EngineStats()

    def send(self, message):
        self.send_raw(type(message).__name__.encode() + b"\0" + msgspec.msgpack.encode(message))

    def send_raw(self, data):
        self._push.send(data)

    def add(self, request_id, prompt, **sampling):
        params = SamplingParams(**{"max_tokens": 5, "temperature": 0.0, "ignore_eos": True, **sampling})
        self.send(AddRequest(request_id=request_id, prompt_ids=prompt, sampling=params))
        self.tokens[request_id] = []

    def until_ended(self, *request_ids):
        while not set(request_ids) <= set(self.ends):
            assert self._pull.poll(WAIT_MS), "no event came"
            self._read()

    def until_started(self, request_id):
        while request_id not in self.started:
            assert self._pull.poll(WAIT_MS), "no event came"
            self._read()

    def read_waiting(self):
        """What has arrived so far."""
        while self._pull.poll(0):
            self._read()

    def _read(self):
        name, body = self._pull.recv().split(b"\0", 1)
        if name == b"Heartbeat":
            self.beats.append(msgspec.msgpack.decode(body, type=Heartbeat))
            return
        if name == b"SequencesStarted":
            self.started += msgspec.msgpack.decode(body, type=SequencesStarted).request_ids
            return
        if name == b"BlockChanges":
            self.blocks.change(msgspec.msgpack.decode(body, type=BlockChanges))
            return
        if name == b"EngineMap":
            self.maps.append(msgspec.msgpack.decode(body, type=EngineMap))
            return
        assert name == b"StepOutputs"
        event = msgspec.msgpack.decode(body, type=StepOutputs)
        self.stats = event.stats
        for output in event.each():
            assert output.request_id not in self.ends, "one terminal event a request"
            self.tokens[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                self.ends[output.request_id] = output

    def until_drawn(self, holds):
        """Read until a map of which that holds has come."""
        while not any(holds(drawn) for drawn in self.maps):
            assert self._pull.poll(WAIT_MS), "no event came"
            self._read()

    def close(self):
        self._context.destroy(linger=0)


@pytest.fixture(params=[1, 2], ids=["in turn", "ahead"])
def depth(request):
    return request.param


@pytest.fixture
def engine(tmp_path, depth):
    """(client, worker, thread of the loop)."""
    client, worker = Client(tmp_path), GatedWorker(depth)
    channel = Channel(*client.endpoints)
    loop = EngineLoop(Scheduler(CONFIG, BlockPool(BLOCKS, BLOCK)), worker, channel, heartbeat=0.02)
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield client, worker, thread
    worker.gate.set()
    client.send(Shutdown())
    thread.join()
    channel.close()
    client.close()


def want(prompt, output=5):
    return expected(prompt, SamplingParams(max_tokens=output, ignore_eos=True), CONTEXT)


def test_requests_are_answered_and_bad_messages_dropped(engine, caplog):
    client, _, _ = engine
    client.send_raw(b"Nonsense\0")
    client.send_raw(b"AddRequest\0\xc1")
    client.send_raw(b"no end of a name")
    for i in range(6):
        client.add(f"r{i}", [1 + i] * (3 + 5 * i))
    client.until_ended(*(f"r{i}" for i in range(6)))
    assert client.tokens == {f"r{i}": want([1 + i] * (3 + 5 * i)) for i in range(6)}
    assert caplog.text.count("dropped a message") == 3


def test_what_is_computed_for_the_first_time_is_told_before_the_step(engine):
    client, _, _ = engine
    client.add("never", [1] * CONTEXT)
    client.add("a", [5, 6, 7])
    client.until_started("a")
    assert client.tokens["a"] == []
    client.add("b", [5, 6, 8])
    client.until_ended("a", "b")
    assert client.started == ["a", "b"], "each once, and not what can never run"


def test_what_can_never_run_ends_with_an_error_that_says_why(engine):
    client, _, _ = engine
    client.add("long", [1] * CONTEXT)
    client.until_ended("long")
    assert client.ends["long"].finish_reason is FinishReason.ERROR
    assert f"the longest request that fits is {CONTEXT}" in client.ends["long"].error


def test_a_failed_step_ends_its_own_requests_only(engine):
    client, worker, _ = engine
    worker.gate.clear()
    client.add("doomed", [1] * 40)
    assert worker.started.acquire(timeout=WAIT_MS / 1000)
    client.add("later", [2] * 9)
    worker.gate.set()
    client.until_ended("doomed", "later")
    assert client.ends["doomed"].finish_reason is FinishReason.ERROR
    assert "RuntimeError: injected" in client.ends["doomed"].error
    assert client.tokens["later"] == want([2] * 9)


def test_the_worker_forgets_whoever_has_ended(engine):
    """Also if the last one's end is seen while a step runs that was planned with it."""
    client, worker, _ = engine
    for i in range(5):
        first = want([1 + i] * 9)[0]
        client.add(f"r{i}", [1 + i] * 9, stop_token_ids=(first,))
        client.until_ended(f"r{i}")
    for _ in range(1000):  # the worker hears of it after the client does
        if not worker.tokens:
            break
        time.sleep(0.01)
    assert worker.tokens == {}


def test_steps_overlap_where_the_worker_takes_two(engine):
    client, worker, _ = engine
    client.add("long", [3] * 9, max_tokens=30)
    client.until_ended("long")
    assert client.tokens["long"] == want([3] * 9, 30)
    assert worker.most_open == worker.depth


def test_a_step_that_is_refused_fails_and_the_one_before_it_does_not(engine):
    client, worker, _ = engine
    worker.gate.clear()
    client.add("running", [5] * 9, max_tokens=40)
    assert worker.started.acquire(timeout=WAIT_MS / 1000)
    client.add("refused", [1] * 5)
    worker.gate.set()
    client.until_ended("refused", "running")
    brought = client.tokens["running"]
    assert brought == want([5] * 9, 40)[: len(brought)] != []
    assert "RuntimeError: injected" in client.ends["refused"].error
    client.add("next", [5] * 9)
    client.until_ended("next")
    assert client.tokens["next"] == want([5] * 9)


def test_blocks_move_between_tiers_beside_steps(tmp_path, depth):
    """The worker computes as late as it is allowed to, and notices blocks that are changed or unwritten when it reads."""
    client, worker = Client(tmp_path), GatedWorker(depth)
    worker.kv = np.full((BLOCKS, BLOCK), -1, np.int64)
    memory = torch.from_numpy(worker.kv).view(torch.uint8)
    channel, pool, size = Channel(*client.endpoints), BlockPool(BLOCKS, BLOCK), memory.shape[1]
    tiers = TransferPlanner(pool, [TierIndex("host", 90 * size, size, eviction_of("lru", 90))], preemption="swap")
    transfer_worker = TransferWorker(memory, {"host": HostStore(90, size)}, channel.wake)
    scheduler = Scheduler(CONFIG, pool, tiers)
    thread = threading.Thread(target=EngineLoop(scheduler, worker, channel, transfer_worker=transfer_worker).run)
    thread.start()
    prompts = {f"r{i}": [1 + i] * 40 for i in range(12)}
    for turn in range(2):
        worker.gate.clear()  # until all are there
        for name, prompt in prompts.items():
            client.add(f"{name} {turn}", prompt, max_tokens=20)
        worker.gate.set()
        client.until_ended(*(f"{name} {turn}" for name in prompts))
        for name, prompt in prompts.items():
            assert client.tokens[f"{name} {turn}"] == want(prompt, 20)
    client.send(Shutdown())
    thread.join()
    stats = scheduler.snapshot()
    channel.close()
    client.close()
    assert stats.tiers["host"].loaded > 0  # how many is a matter of time
    assert stats.swapped_out > 0


def test_who_asks_is_told_which_blocks_are_there_and_which_come(engine):
    client, _, _ = engine
    names = [block_names(root_hash("sim"), [token] * 20, BLOCK) for token in (1, 2, 3)]
    client.add("before", [1] * 20)
    client.until_ended("before")
    assert not len(client.blocks), "nobody asked"
    client.send(PublishBlocks())
    client.add("after", [2] * 20)
    client.until_ended("after")
    assert [client.blocks.held(each) for each in names] == [HeldBlocks(5), HeldBlocks(5), HeldBlocks(0)]
    client.add("long", [9] * (CONTEXT - 10))
    client.until_ended("long")
    assert [client.blocks.held(each) for each in names] != [HeldBlocks(5), HeldBlocks(5), HeldBlocks(0)], "evicted"
    client.send(PublishBlocks(publish=False))
    client.add("later", [3] * 20)
    client.until_ended("later")
    assert client.blocks.held(names[2]) == HeldBlocks(0)


def test_who_watches_sees_a_request_come_and_go_and_then_nothing_more(engine):
    client, worker, _ = engine
    client.add("unseen", [1] * 9)
    client.until_ended("unseen")
    assert not client.maps, "nobody watched"
    client.send(PublishMap())
    client.until_drawn(lambda drawn: drawn.running == 0 and drawn.used == 0 and drawn.cached > 0)
    worker.gate.clear()
    client.add("seen", [2] * 20)
    client.until_drawn(lambda drawn: [row.name for row in drawn.requests] == ["seen"] and drawn.used >= 5)
    worker.gate.set()
    client.until_ended("seen")
    client.until_drawn(lambda drawn: drawn.steps and drawn.running == 0)
    told = [step for drawn in client.maps for step in drawn.steps]
    assert sum(step.prompt_tokens for step in told) == 20 and sum(step.decodes for step in told) >= 4
    assert [name for step in told for name, _, _ in step.prompts] == ["seen", "seen"]
    client.send(PublishMap(publish=False))
    client.add("later", [3] * 9)
    client.until_ended("later")
    assert not [row for drawn in client.maps for row in drawn.requests if row.name == "later"]


def test_a_lost_device_ends_the_loop(tmp_path, request, engine):
    client, _, thread = engine
    caught = []
    hook, threading.excepthook = threading.excepthook, lambda told: caught.append(told.exc_type)
    request.addfinalizer(lambda: setattr(threading, "excepthook", hook))
    client.add("lost", [1] * 9)
    thread.join(WAIT_MS / 1000)
    assert caught == [DeviceLost]


def test_an_abort_ends_a_request_while_its_step_runs(engine):
    client, worker, _ = engine
    worker.gate.clear()
    client.add("gone", [1] * 9)
    assert worker.started.acquire(timeout=WAIT_MS / 1000)
    client.send(AbortRequests(request_ids=["gone", "unknown"]))
    client.until_ended("gone")
    assert client.ends["gone"].finish_reason is FinishReason.ABORT
    worker.gate.set()
    client.add("next", [1] * 9)
    client.until_ended("next")
    assert client.tokens == {"gone": [], "next": want([1] * 9)}


def test_shutdown_waits_for_the_step_that_runs(engine, caplog):
    client, worker, thread = engine
    worker.gate.clear()
    client.add("open", [1] * 9)
    assert worker.started.acquire(timeout=WAIT_MS / 1000)
    client.send(Shutdown())
    thread.join(0.3)
    assert thread.is_alive(), "the worker still uses what the loop's end would close"
    worker.gate.set()
    thread.join()
    assert not caplog.records


def test_the_server_hears_what_the_loop_waits_for(engine):
    client, worker, _ = engine
    worker.gate.clear()
    client.add("long", [1] * 9)
    assert worker.started.acquire(timeout=WAIT_MS / 1000)
    time.sleep(0.1)
    worker.gate.set()
    client.until_ended("long")
    steps = [beat for beat in client.beats if beat.doing == "step" and beat.tokens == 9]
    assert len(steps) > 1 and steps[-1].seconds > steps[0].seconds > 0.0
