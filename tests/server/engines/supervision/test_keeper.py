"""The keeper's process: started again when it dies, with what it had, as operators are told; told to stop, it writes that to the
disk.
"""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace

import httpx
import pytest

from configs.settings import Settings
from engine.keeper.client import KeeperClient
from engine.keeper.host import KeptHost
from engine.keeper.slab import SharedSlab
from engine.kv_store.store import StoreLost
from server.app import create_app
from server.engines.client import EngineClient
from server.engines.engines import Engines
from server.engines.supervision import keeper as keeper_module
from server.engines.supervision.keeper import KeeperSupervisor
from server.engines.supervision.restart import RestartPolicy
from tests.engine.keeper.keepers import SIZE, hello
from tests.engine.kv_store.test_host import get, put
from tests.server.api.scripted import Server
from tests.server.engines.harness import eventually

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


class Operator:
    """Who asks a server of two engines for its keeper."""

    def __init__(self, supervisor):
        server = Server()
        metrics = server.context.metrics
        metrics.watch_keepers(supervisor.reports)
        engines = Engines([server.engine, EngineClient("other", server.settings, metrics)])
        app = create_app(replace(server.context, engines=engines, keepers=supervisor))
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")

    async def card(self):
        """The keeper as both endpoints have it; the server is healthy whatever it does."""
        health = (await self._client.get("/health")).json()
        listed = (await self._client.get("/v1/engines")).json()
        assert health["status"] == "healthy" and listed["keeper"] == health["keeper"]
        return health["keeper"]

    async def samples(self):
        """`headrace_keeper_up`, and restarts by reason."""
        lines = (await self._client.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line.startswith("headrace_keeper_"))
        assert float(values["headrace_keeper_process_resident_memory_bytes"]) > 0
        died, hung = (values[f'headrace_keeper_restarts_total{{reason="{why}"}}'] for why in ("died", "hung"))
        return float(values["headrace_keeper_up"]), float(died), float(hung)


def test_a_keeper_that_is_killed_is_back_with_what_it_had_and_a_stop_writes_it(tmp_path, capfd):
    async def body():
        supervisor = KeeperSupervisor(settings(tmp_path), RestartPolicy(delays=(0.0,)))
        running = asyncio.create_task(supervisor.run())
        store = await asyncio.to_thread(connected, supervisor)
        other = await asyncio.to_thread(connected, supervisor)
        assert await asyncio.to_thread(put, store, 1, 2, 3) == [SIZE] * 3
        operator, first = Operator(supervisor), supervisor.pid
        await eventually(lambda: supervisor.state == "ready")
        assert await operator.card() == {"state": "ready", "trouble": None, "restarts": 0}
        assert await operator.samples() == (1, 0, 0)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: supervisor.restarts["died"] == 1)
        card = await operator.card()
        assert card["state"] == "starting" and card["restarts"] == 1
        assert card["trouble"] == f"process {first} was killed by SIGKILL; it is started again"
        assert await operator.samples() == (0, 1, 0)
        await back(store)
        await back(other)
        await eventually(lambda: supervisor.state == "ready")
        assert await operator.card() == {"state": "ready", "trouble": None, "restarts": 1}
        assert supervisor.pid != first
        assert await asyncio.to_thread(get, other, 1, 2, 3) == [1, 2, 3]
        store.close()
        other.close()
        await supervisor.stop(20.0)
        await running
        assert (await operator.card())["state"] == "stopped"
        supervisor.close()

    asyncio.run(body())
    told = capfd.readouterr().err
    assert "found 3 KV blocks in memory" in told
    assert "wrote 3 of 3 KV blocks that were nowhere else to tier disk" in told
    assert list((tmp_path / "kv").glob("kv-*/*.blocks"))


def test_a_keeper_that_hangs_is_killed_and_started_again(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(keeper_module, "SILENT_BEATS", 1)

    async def body():
        supervisor = KeeperSupervisor(settings(tmp_path), RestartPolicy(delays=(0.0,)))
        supervisor._hang_seconds = 1.5
        running = asyncio.create_task(supervisor.run())
        store = await asyncio.to_thread(connected, supervisor)
        await asyncio.to_thread(put, store, 1)
        first = supervisor.pid
        await eventually(lambda: supervisor.state == "ready")
        os.kill(first, signal.SIGSTOP)
        await eventually(lambda: supervisor.state == "hanging")
        assert supervisor.trouble.startswith("it has said nothing for ")
        await back(store)
        assert supervisor.restarts == {"died": 0, "hung": 1}
        assert supervisor.pid != first and await asyncio.to_thread(get, store, 1) == [1]
        store.close()
        await supervisor.stop(5.0)
        await running
        supervisor.close()

    asyncio.run(body())
    assert "has said nothing for 2 s (hang_seconds)" in caplog.text


@pytest.mark.parametrize("soon", [2.0, 0.0], ids=["at once", "after a while"])
def test_a_keeper_that_never_stays_is_given_up_and_nobody_waits_for_it(tmp_path, monkeypatch, caplog, soon):
    """However long it takes until it fails: it was never heard."""
    monkeypatch.setattr(keeper_module, "_UP_SECONDS", soon)
    spawn = keeper_module.spawn

    def refused(*_, **__):
        monkeypatch.setattr(keeper_module, "spawn", spawn)
        raise BlockingIOError(11, "no process to be had")

    async def body():
        monkeypatch.setattr(sys, "executable", "false")
        supervisor = KeeperSupervisor(settings(tmp_path), RestartPolicy(delays=(0.0,)))
        monkeypatch.setattr(keeper_module, "spawn", refused)  # once, for the second one
        await asyncio.wait_for(supervisor.run(), 30)
        assert supervisor.state == "dead" and supervisor.restarts == {"died": 3, "hung": 0}
        assert (
            "exited with code 1; given up until the server is started again, as 4 starts failed" in supervisor.trouble
        )
        with pytest.raises(StoreLost, match="refused"):
            await asyncio.to_thread(connected, supervisor)
        await supervisor.stop(1.0)
        supervisor.close()
        supervisor.close()

    asyncio.run(body())
    assert caplog.text.count("no process to be had") == 1 and caplog.text.count("exited with code 1") == 3


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
