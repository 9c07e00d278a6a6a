"""Engines on other machines, without a cluster: scripted engines behind real wires with real keys, on nodes in name only."""

import contextlib
import os
import threading

import pytest

from configs.settings import Settings
from engine.ipc.curve import new_keys, peer_keys
from scheduler.types.messages import FinishReason
from server.engines.launch import CannotLaunch
from server.engines.nodes import agent, opening
from server.engines.nodes.agent import Deployment, NodeAgent
from server.engines.nodes.cluster import NodeLost, NodeRefuses, Seat
from server.engines.nodes.launcher import NodeLauncher
from server.engines.process import Endpoints, EngineProcess
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

    def stop(self, flush_seconds, grace):
        pass

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
