"""Engines that are killed in the middle of a put or a read: nothing half-written is visible, nothing stays leased."""

import subprocess
import sys

import pytest

from tests.engine.keeper.keepers import SIZE
from tests.engine.kv_store.test_host import get, put

pytestmark = pytest.mark.processes

# An engine that asks for slots of 1 .. 4, writes half a block, and waits to be killed.
ENGINE = """
import mmap, sys, time
from engine.ipc.keeper_address import KeeperAddress
from engine.keeper.client import KeeperClient
from engine.keeper.messages import GivenSlots, Hello, Lend, Reserve
from scheduler.types.block_hash import BlockKey

path, slab, size, asks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
hello = Hello(
    pid=0, client=0, fingerprint="model", block_bytes=size, block_tokens=4, element_bytes=2, fresh=False
)
client = KeeperClient(KeeperAddress(socket=path, slab=slab), hello)
welcome = client.connect()
memory = mmap.mmap(slab, welcome.offset + welcome.slots * size)
keys = [BlockKey(number.to_bytes(8, "big"), (number, number + 1)) for number in range(1, 5)]
with client.lane() as lane:
    slots = lane.ask(Reserve(block_keys=keys) if asks == "put" else Lend(block_keys=keys), GivenSlots).slots
    if asks == "put":
        begin = welcome.offset + slots[0] * size
        memory[begin : begin + size // 2] = b"x" * (size // 2)
    print(slots, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def engine(keeper):
    """Starts one; returns the process and the slots that it was given."""
    started = []

    def start(asks):
        line = [sys.executable, "-c", ENGINE, keeper.address.socket, str(keeper.slab), str(SIZE), asks]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, pass_fds=[keeper.slab])
        started.append(process)
        return process, eval(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def kill(process):
    process.kill()
    process.wait()


def test_in_the_middle_of_a_put(keeper, store, engine):
    process, slots = engine("put")
    assert sorted(slots) == [0, 1, 2, 3]
    assert get(store, 1) == [] and put(store, 5) == [0], "all slots are being written"
    kill(process)
    keeper.wait_until(lambda: put(store, 5) == [SIZE])
    assert get(store, 1, 2, 3, 4, 5) == [5]
    assert put(store, 1, 2, 3) == [SIZE] * 3
    assert get(store, 1, 2, 3, 5) == [1, 2, 3, 5]


def test_in_the_middle_of_a_read(keeper, store, engine):
    put(store, 1, 2, 3, 4)
    process, _ = engine("get")
    assert put(store, 5) == [0], "all of them are being read"
    kill(process)
    keeper.wait_until(lambda: put(store, 5) == [SIZE])
    assert get(store, 1, 2, 3, 4, 5) == [1, 2, 3, 5]


def test_a_keeper_that_dies_and_is_back_keeps_off_what_is_still_being_written(keeper, store, engine):
    process, _ = engine("put")
    keeper.kill()
    keeper.start()
    store.check()
    assert not list(store.kept()) and put(store, 7) == [0]
    kill(process)
    assert put(store, 7) == [SIZE] and get(store, 7) == [7]
