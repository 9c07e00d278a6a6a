"""Engines on other machines, without a cluster: scripted engines behind real wires with real keys, on nodes in name only."""

import asyncio
import contextlib
import os
import threading
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest

from configs.settings import Settings
from engine.ipc.curve import new_keys, peer_keys
from scheduler.types.messages import FinishReason
from server.app import create_app
from server.engines.launch import CannotLaunch
from server.engines.nodes import agent, keepers, opening
from server.engines.nodes.agent import Deployment, NodeAgent
from server.engines.nodes.cluster import NodeLost, NodeRefuses, Seat
from server.engines.nodes.launcher import NodeLauncher
from server.engines.process import Endpoints, EngineProcess
from server.engines.supervision.keeper import KeeperReport
from tests.server.api.scripted import Server
from tests.server.engines.harness import arguments, eventually, read, run, running
from tests.server.engines.scripted_engine import DIE, HOLD, TOKEN

pytestmark = pytest.mark.processes


class ScriptedNode:
    """Starts scripted engines on this machine. Once `lost`, it answers nobody, and its engines are dead."""

    address = "127.0.0.1"

    def __init__(self, refusal=None):
        self.refusal = refusal
        self.lost = threading.Event()
        self.processes = []

    def prepare(self, engine):
        if self.refusal is not None:
            raise NodeRefuses(self.refusal)
        self.keys = new_keys()
        return self.keys.public

    def start(self, engine, devices, commands, events, server):
        line, (read_end, write) = arguments("--heartbeat", "0.02"), os.pipe()
        os.write(write, peer_keys(self.keys, server).encode())
        os.close(write)
        process = EngineProcess([*line, "--keys", str(read_end)], [read_end], Endpoints(commands, events))
        os.close(read_end)
        self.processes.append(process)
        return process.pid

    def ended(self, engine, pid):
        self.processes[-1].wait()
        if self.lost.is_set():
            raise NodeLost("node 127.0.0.1 was lost")
        return self.processes[-1].exit_code

    def kill(self, engine, pid):
        self.processes[-1].kill()

    def die(self):
        self.lost.set()
        self.processes[-1].kill()


class ScriptedCluster:
    """Its nodes are handed out in order; where there is none left, engines wait."""

    address = "127.0.0.1"

    def __init__(self, *nodes):
        self.nodes, self._all = list(nodes), nodes
        self.asked = 0
        self.told, self.stopped = {}, None

    def seat(self, number, seconds):
        self.asked += 1
        while self.nodes and self.nodes[0].lost.is_set():
            self.nodes.pop(0)
        if not self.nodes:
            threading.Event().wait(0.01)
            return None
        return Seat(self.nodes[0], [])

    def introduce(self, node):
        pass

    def keepers(self):
        if isinstance(self.told, Exception):
            raise self.told
        return self.told

    def stop(self, flush_seconds, grace):
        self.stopped = (flush_seconds, grace)

    def close(self):
        for node in self._all:
            for process in node.processes:
                process.close()


@contextlib.asynccontextmanager
async def served(cluster, **options):
    launcher = NodeLauncher(["engine"], cluster)
    try:
        async with running(launch=lambda: launcher.launch("engine"), **options) as rig:
            yield rig
    finally:
        launcher.close()


def test_requests_are_served_over_the_wire_to_a_node():
    async def body():
        node = ScriptedNode()
        async with served(ScriptedCluster(node)) as rig:
            outputs = await read(rig.submit(max_tokens=3))
            assert [token for output in outputs for token in output.token_ids] == [TOKEN] * 3
            assert rig.processes[0].pid == node.processes[0].pid

    run(body)


def test_an_engine_that_dies_is_started_again_and_goes_on():
    async def body():
        node = ScriptedNode()
        async with served(ScriptedCluster(node)) as rig:
            stream = rig.submit(HOLD)
            await eventually(lambda: stream.started)
            rig.submit(DIE)
            await eventually(lambda: len(node.processes) == 2 and rig.client.status.state == "ready")
            assert rig.sample("headrace_engine_restarts_total", engine="engine", reason="died") in (None, 1.0)
            rig.client.abort_all("over")

    run(body)


def test_an_engine_whose_node_is_lost_goes_on_on_another_one():
    async def body():
        first, second = ScriptedNode(), ScriptedNode()
        async with served(ScriptedCluster(first, second)) as rig:
            stream = rig.submit(HOLD)
            await eventually(lambda: stream.started)
            first.die()
            await eventually(lambda: len(second.processes) == 1 and rig.client.status.state == "ready")
            assert rig.client.open_count == 1  # it was replayed there
            rig.client.abort_all("over")
            assert (await read(stream))[-1].finish_reason is FinishReason.ABORT

    run(body)


def test_an_engine_waits_for_a_node_as_long_as_it_takes():
    async def body():
        cluster = ScriptedCluster()
        async with served(cluster, until=lambda rig: cluster.asked > 3, start_seconds=0.001) as rig:
            assert rig.client.status.state == "starting"

    run(body)


def test_what_a_node_refuses_is_the_reason_why_the_engine_does_not_start():
    async def body():
        cluster = ScriptedCluster(ScriptedNode(refusal="node 10.0.0.2 has no model: copy it there"))
        async with served(cluster, until=lambda rig: rig.client.status.state == "dead") as rig:
            assert rig.client.status.failure == "node 10.0.0.2 has no model: copy it there"

    run(body)


def test_keepers_of_nodes_are_as_their_nodes_last_said(monkeypatch):
    monkeypatch.setattr(keepers, "_LOOK_SECONDS", 0.001)
    ready = KeeperReport(state="ready", trouble=None, restarts={"died": 1, "hung": 0})

    async def body():
        cluster = ScriptedCluster()
        launcher = NodeLauncher(["engine"], cluster, keeps=True)
        assert launcher.keepers.reports() == {}
        running = asyncio.create_task(launcher.keepers.run())
        cluster.told = {"10.0.0.1": ready, "10.0.0.2": replace(ready, state="dead", trouble="it does not start")}
        await eventually(lambda: launcher.keepers.reports() == cluster.told)
        cluster.told = {"10.0.0.1": ready}  # the other node is lost
        await eventually(lambda: launcher.keepers.reports() == cluster.told)
        cluster.told = NodeLost("the cluster does not answer")
        silent = replace(ready, state="hanging", trouble="the cluster does not answer")
        await eventually(lambda: launcher.keepers.reports() == {"10.0.0.1": silent})
        cluster.told = {"10.0.0.1": ready}
        await eventually(lambda: launcher.keepers.reports()["10.0.0.1"].up)
        await launcher.keepers.stop(3.0, grace=1.0)
        await running
        assert cluster.stopped == (3.0, 1.0) and launcher.keepers.reports()["10.0.0.1"].state == "stopped"
        launcher.close()

    run(body)


def test_an_answer_that_comes_after_the_stop_changes_nothing(monkeypatch):
    monkeypatch.setattr(keepers, "_LOOK_SECONDS", 0.001)
    ready = KeeperReport(state="ready", trouble=None, restarts={"died": 0, "hung": 0})
    asked, answer = threading.Event(), threading.Event()

    class Slow(ScriptedCluster):
        def keepers(self):
            if watched.reports():  # the second time
                asked.set()
                answer.wait(10)
            return {"10.0.0.1": ready}

    watched = keepers.NodeKeepers(Slow())

    async def body():
        running = asyncio.create_task(watched.run())
        await eventually(asked.is_set)
        await watched.stop(3.0)
        answer.set()
        await running
        assert watched.reports()["10.0.0.1"].state == "stopped"

    run(body)


def test_nodes_without_tiers_have_no_keepers_to_be_asked():
    launcher = NodeLauncher(["engine"], ScriptedCluster())
    assert launcher.keepers is None
    launcher.close()


def test_operators_are_told_of_the_keepers_of_nodes():
    ready = KeeperReport(state="ready", trouble=None, restarts={"died": 1, "hung": 2})
    told = {"10.0.0.1": ready, "10.0.0.2": replace(ready, state="hanging", trouble="node 10.0.0.2 has not answered")}

    async def body():
        server = Server()
        context = replace(server.context, keepers=SimpleNamespace(reports=lambda: told))
        transport = httpx.ASGITransport(create_app(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            health = (await client.get("/health")).json()
            listed = (await client.get("/v1/engines")).json()
        assert health["keeper"] is listed["keeper"] is None and health["keepers"] == listed["keepers"]
        assert health["keepers"] == {
            "10.0.0.1": {"state": "ready", "trouble": None, "restarts": 3},
            "10.0.0.2": {"state": "hanging", "trouble": "node 10.0.0.2 has not answered", "restarts": 3},
        }

    run(body)


def refused(**deployment):
    made = Deployment(**{"settings": Settings(ray="auto").for_engine(), "model": None, "version": "0"} | deployment)
    node = NodeAgent("10.0.0.2", 1, made)
    try:
        node.prepare("engine")
    except NodeRefuses as error:
        return str(error)
    finally:
        node.close()
    raise AssertionError("it was not refused")


def test_a_node_says_what_it_lacks(monkeypatch):
    assert refused(version="1999.1").startswith("node 10.0.0.2 has headrace 20")
    monkeypatch.setattr(agent, "version", lambda _: "0")
    said = refused(model="/no/such/model.gguf")
    assert "node 10.0.0.2: no such model file or folder: /no/such/model.gguf" in said
    assert said.endswith("each node needs the model's files where the server has them")


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    with pytest.raises(CannotLaunch, match=r"pip install 'headrace\[ray\]'"):
        opening.node_launcher(Settings(ray="auto"))
