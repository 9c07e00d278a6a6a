"""The keeper's process: started again when it dies, with what it had; told to stop, it writes that to the disk."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest

from configs.settings import Settings
from engine.keeper.client import KeeperClient
from engine.keeper.host import KeptHost
from engine.keeper.slab import SharedSlab
from engine.kv_store.store import StoreLost
from server.engines.supervision.keeper import KeeperSupervisor
from server.engines.supervision.restart import RestartPolicy
from server.telemetry.metrics import Metrics
from tests.engine.keeper.keepers import SIZE, hello
from tests.engine.kv_store.test_host import get, put

pytestmark = pytest.mark.processes


def settings(folder):
    return Settings(engines=2, kv_host_gib=1e-4, kv_disk_path=str(folder / "kv"))


def connected(supervisor):
    return KeptHost(SharedSlab(KeeperClient(supervisor.address, hello()), SIZE, pinned=False))


async def back(store):
    """Lose it, and seek it, as a transfer worker does."""
    lost = False
    for _ in range(400):
        try:
            await asyncio.to_thread(store.check if lost else store.changes)
        except StoreLost:
            lost = True
        else:
            if lost:
                return
        await asyncio.sleep(0.02)
    raise AssertionError("it has not come back")


def test_a_keeper_that_is_killed_is_back_with_what_it_had_and_a_stop_writes_it(tmp_path, capfd):
    async def body():
        supervisor = KeeperSupervisor(settings(tmp_path), RestartPolicy(delays=(0.0,)))
        running = asyncio.create_task(supervisor.run())
        store = await asyncio.to_thread(connected, supervisor)
        other = await asyncio.to_thread(connected, supervisor)
        assert await asyncio.to_thread(put, store, 1, 2, 3) == [SIZE] * 3
        metrics = Metrics()
        metrics.watch_keeper(lambda: supervisor.pid, lambda: supervisor.restarts)
        value = metrics.registry.get_sample_value
        assert (value("headrace_keeper_up"), value("headrace_keeper_restarts_total")) == (1, 0)
        first = supervisor.pid
        os.kill(first, signal.SIGKILL)
        await back(store)
        await back(other)
        assert supervisor.pid != first
        assert (value("headrace_keeper_up"), value("headrace_keeper_restarts_total")) == (1, 1)
        assert value("headrace_keeper_process_resident_memory_bytes") > 2**20
        assert await asyncio.to_thread(get, other, 1, 2, 3) == [1, 2, 3]
        store.close()
        other.close()
        await supervisor.stop(20.0)
        await running
        assert (value("headrace_keeper_up"), value("headrace_keeper_restarts_total")) == (0, 1)
        supervisor.close()

    asyncio.run(body())
    told = capfd.readouterr().err
    assert "found 3 KV blocks in memory" in told
    assert "wrote 3 of 3 KV blocks that were nowhere else to tier disk" in told
    assert list((tmp_path / "kv").glob("kv-*/*.blocks"))


def test_a_keeper_that_hangs_is_killed_and_started_again(tmp_path, caplog):
    async def body():
        supervisor = KeeperSupervisor(settings(tmp_path), RestartPolicy(delays=(0.0,)))
        supervisor._hang_seconds = 1.5
        running = asyncio.create_task(supervisor.run())
        store = await asyncio.to_thread(connected, supervisor)
        await asyncio.to_thread(put, store, 1)
        first = supervisor.pid
        os.kill(first, signal.SIGSTOP)
        await back(store)
        assert supervisor.pid != first and await asyncio.to_thread(get, store, 1) == [1]
        store.close()
        await supervisor.stop(5.0)
        await running
        supervisor.close()

    asyncio.run(body())
    assert "has said nothing for 1.5 s (hang_seconds)" in caplog.text


def test_a_keeper_that_never_stays_is_given_up_and_nobody_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")

    async def body():
        supervisor = KeeperSupervisor(settings(tmp_path), RestartPolicy(delays=(0.0,)))
        await asyncio.wait_for(supervisor.run(), 30)
        with pytest.raises(StoreLost, match="refused"):
            await asyncio.to_thread(connected, supervisor)
        await supervisor.stop(1.0)
        supervisor.close()
        supervisor.close()

    asyncio.run(body())


def test_a_keeper_ends_with_its_server(tmp_path):
    supervisor = KeeperSupervisor(settings(tmp_path))
    store = connected(supervisor)
    supervisor._child.stdin.close()
    assert supervisor._child.wait(30) == 0
    with pytest.raises(StoreLost):
        get(store, 1)
    store.close()
    supervisor.close()


def test_a_keeper_needs_no_torch():
    code = "import sys, engine.keeper.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
