"""One incarnation of an engine on a node, and the node's agent, step by step: who is told what, and what is said if it fails."""

import asyncio
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.settings import Settings
from engine.ipc.peer_list import KeeperPeer
from server.engines.launch import CannotLaunch
from server.engines.nodes import agent
from server.engines.nodes.agent import Deployment, NodeAgent
from server.engines.nodes.cluster import NodeLost, NodeRefuses, Seat
from server.engines.nodes.placement import NodeResources, ensure_room, seats_of
from server.engines.nodes.process import EXIT_NODE, EXIT_REFUSED, NodeProcess
from server.engines.process import Endpoints


class Notes:
    """A cluster, its only node and the wire; notes in which order they are asked what. `fails`: what a call raises."""

    address = "10.0.0.2"
    endpoints = Endpoints("tcp://here:1", "tcp://here:2")

    def __init__(self, code=0, **fails):
        self.code, self.fails, self.said = code, fails, []
        self.at_start, self.go_on, self.over = threading.Event(), threading.Event(), threading.Event()
        self.go_on.set()

    def _note(self, what, *arguments):
        self.said.append((what, *arguments))
        if what in self.fails:
            raise self.fails[what]

    def seat(self, number, seconds):
        self._note("seat", number)
        return Seat(self, ["3", "4"]) if "nowhere" not in self.fails else None

    def introduce(self, node):
        self._note("introduce")

    def admit(self, key):
        self._note("admit", key)

    def prepare(self, engine):
        self._note("prepare", engine)
        return b"key"

    def start(self, *arguments):
        self._note("start", *arguments)
        self.at_start.set()
        self.go_on.wait(10)
        return 77

    def ended(self, engine, pid):
        self._note("ended", engine, pid)
        self.over.wait(10)
        return self.code

    def kill(self, engine, pid):
        self._note("kill", engine, pid)
        self.over.set()

    def process(self):
        return NodeProcess("engine-1", 1, self, self, b"server")


def ended(process):
    assert process._over.wait(10)
    return process.exit_code, process.describe_exit()


def test_keys_are_known_before_the_engine_starts_and_it_is_told_all():
    node = Notes(code=-9)
    node.over.set()
    process = node.process()
    assert ended(process) == (-9, "process 77 on node 10.0.0.2 was killed by SIGKILL")
    assert node.said == [
        ("seat", 1),
        ("prepare", "engine-1"),
        ("admit", b"key"),
        ("introduce",),
        ("start", "engine-1", ["3", "4"], "tcp://here:1", "tcp://here:2", b"server"),
        ("ended", "engine-1", 77),
    ]
    process.kill()
    assert node.said[-1][0] == "ended", "the dead are not killed: another may have the number"


@pytest.mark.parametrize(
    ("fails", "code", "words"),
    [
        ({"prepare": NodeRefuses("it has no model")}, EXIT_REFUSED, "it has no model"),
        ({"start": NodeRefuses("no process")}, EXIT_REFUSED, "no process"),
        ({"prepare": NodeLost("it was lost")}, EXIT_NODE, "it was lost"),
        ({"ended": NodeLost("it was lost")}, EXIT_NODE, "it was lost"),
        ({"seat": KeyError("new")}, EXIT_NODE, "cannot be started (KeyError: 'new')"),
        ({"introduce": RuntimeError("odd")}, EXIT_NODE, "cannot be started (RuntimeError: odd)"),
    ],
)
def test_whatever_fails_ends_it_with_a_sentence(fails, code, words):
    assert ended(Notes(**fails).process()) == (code, words)


def test_one_that_is_not_wanted_while_it_waits_for_a_place_ends():
    node = Notes(nowhere=None)
    process = node.process()
    process.kill()
    assert ended(process) == (EXIT_NODE, "has not been started")
    assert {what for what, *_ in node.said} <= {"seat"}


def test_one_that_is_killed_while_it_starts_does_not_live_on():
    node = Notes(code=-9)
    node.go_on.clear()
    process = node.process()
    assert node.at_start.wait(10)
    process.kill()
    assert not [said for said in node.said if said[0] == "kill"], "it has no number yet"
    node.go_on.set()
    assert ended(process)[0] == -9
    assert ("kill", "engine-1", 77) in node.said


class NamedProcess:
    """An engine's process in name only."""

    def __init__(self, line, descriptors, endpoints, environment):
        self.line, self.environment, self.closed, self.killed = line, environment, False, False
        self.pid, self.exit_code = 100 + len(STARTED), 3
        STARTED.append(self)

    def wait(self):
        pass

    def kill(self):
        self.killed = True

    def close(self):
        self.closed = True


STARTED = []


@pytest.fixture
def node(monkeypatch):
    """Makes an agent that starts processes in name only, on a machine of 1000 bytes."""
    STARTED.clear()
    monkeypatch.setattr(agent, "version", lambda _: "1")
    monkeypatch.setattr(agent, "configure_lines", lambda *_: None)
    monkeypatch.setattr(agent, "machine_says", lambda: {"memory": {"amount": 1000}})
    monkeypatch.setattr(agent, "EngineProcess", NamedProcess)
    made = []

    def make(seats=2, **settings):
        made.append(NodeAgent("10.0.0.2", seats, Deployment(Settings(ray="auto", **settings).for_engine(), None, "1")))
        return made[-1]

    yield make
    for each in made:
        if each._thread.is_alive():
            each.close()


def start(node, engine="engine-0", devices=()):
    return node.start(engine, list(devices), "tcp://a:1", "tcp://a:2", b"server")


def test_an_agent_starts_nothing_twice_with_the_same_keys(node):
    made = node()
    for name in ("engine-0", "engine-1"):
        with pytest.raises(NodeRefuses, match=rf"^node 10\.0\.0\.2: {name} has no keys here$"):
            start(made, name)
        made.prepare(name)
    pid = start(made)
    with pytest.raises(NodeRefuses, match="engine-0 has no keys here"):
        start(made)
    assert not STARTED[0].closed, "nor is the one that runs ended"
    assert made.prepare("engine-0") != made.prepare("engine-0")
    assert start(made) != pid and STARTED[0].closed


def test_an_agent_ends_and_waits_for_the_process_that_is_meant(node):
    made = node()
    made.prepare("engine-0")
    first = start(made)
    made.prepare("engine-0")
    second = start(made)
    made.kill("engine-0", first)
    assert not STARTED[1].killed
    assert made.ended("engine-0", first) == -9 and made.ended("engine-9", second) == -9
    assert made.ended("engine-0", second) == 3
    made.kill("engine-0", second)
    assert STARTED[1].killed


def test_an_engine_gets_its_share_and_its_gpus(node, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    made = node(seats=3, cpus_per_engine=2)
    made.prepare("engine-0")
    start(made, devices=["4", "6"])
    share = STARTED[0].line[STARTED[0].line.index("--share") + 1]
    assert '"memory":333' in share and '"cores":2' in share and '"devices":["4","6"]' in share
    assert STARTED[0].environment == {"CUDA_VISIBLE_DEVICES": "4,6"}
    assert "OMP_NUM_THREADS" not in agent.os.environ
    assert made.peer() is None, "without tiers nobody is met"
    made.meet([KeeperPeer("tcp://x:1", "key")])


def test_a_process_that_cannot_be_started_is_refused_with_its_reason(node, monkeypatch):
    made = node()
    made.prepare("engine-0")

    def fails(*_):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(agent, "EngineProcess", fails)
    with pytest.raises(NodeRefuses, match=r"node 10\.0\.0\.2: the engine's process cannot be started: Cannot allocate"):
        start(made)


def test_a_machine_that_cannot_be_measured_is_refused_until_it_can(node, monkeypatch):
    made = node()
    monkeypatch.setattr(agent, "machine_says", lambda: {"error": "no torch"})
    with pytest.raises(NodeRefuses, match=r"node 10.0.0.2: the machine could not be measured: .*no torch"):
        made.prepare("engine-0")
    monkeypatch.setattr(agent, "machine_says", lambda: {"memory": {"amount": 1000}})
    assert made.prepare("engine-0")


class NamedPart:
    """A node's door, or its keeper, in name only."""

    hinges, peer = None, KeeperPeer("tcp://10.0.0.2:1", "key")

    def __init__(self):
        self.closed, self.over = False, threading.Event()

    async def run(self):
        try:
            await asyncio.sleep(60)
        finally:
            self.over.set()

    def close(self):
        self.closed = True


def test_a_refused_attempt_leaves_nothing_behind_when_the_next_one_succeeds(node, monkeypatch):
    made, parts, outcomes = node(kv_host_gib=1.0), [], ["weights", "keeper", None]

    def part(*_, **__):
        parts.append(NamedPart())
        return parts[-1]

    def keeper(*_, **__):
        if outcomes[0] == "keeper":
            raise OSError("no room for the keeper")
        return part()

    def weights(name):
        if outcomes[0] == "weights":
            raise OSError("no room for weights")
        return agent.os.open("/dev/null", agent.os.O_RDONLY)

    monkeypatch.setattr(agent, "NodeDoor", part)
    monkeypatch.setattr(agent, "KeeperSupervisor", keeper)
    monkeypatch.setattr(agent, "shared_memory", weights)
    for outcome in ("weights", "keeper"):
        with pytest.raises(NodeRefuses, match=f"no room for (the )?{outcome}"):
            made.prepare("engine-0")
        outcomes.pop(0)
    made.prepare("engine-0")
    made.prepare("engine-1")
    assert len(parts) == 2, "one door, one keeper"
    assert made.peer() == NamedPart.peer
    made.close()
    assert all(part.closed for part in parts)
    assert parts[1].over.is_set(), "what watches the keeper is not left pending"


def test_nixl_that_a_node_lacks_is_named_with_its_cure(node, monkeypatch):
    monkeypatch.setattr(agent, "nixl_package", lambda: None)
    with pytest.raises(NodeRefuses, match=r"node 10\.0\.0\.2: kv_transfer is nixl.*pip install 'headrace\[nixl\]'"):
        node(kv_transfer="nixl", kv_host_gib=1.0).prepare("engine-0")


amounts = st.integers(0, 9) | st.sampled_from([0.5, 1.5, 7.25])
nodes = st.lists(
    st.builds(NodeResources, st.sampled_from(["a", "b", "c"]), amounts, amounts),
    max_size=4,
    unique_by=lambda n: n.address,
)


@given(nodes, st.integers(1, 4), st.integers(0, 4), st.integers(1, 12))
def test_places_are_as_many_as_fit_and_all_are_needed(nodes, cpus, gpus, engines):
    needs = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
    seats = [seats_of(node, needs, engines) for node in nodes]
    for node, count in zip(nodes, seats, strict=True):
        fits = count * cpus <= node.cpus and count * gpus <= node.gpus
        one_more = (count + 1) * cpus <= node.cpus and (count + 1) * gpus <= node.gpus
        assert fits and (count == engines or not one_more)
    if sum(seats) >= engines:
        ensure_room(nodes, needs, engines)
        return
    with pytest.raises(CannotLaunch, match=f"room for {sum(seats)} of {engines} engines") as refused:
        ensure_room(nodes, needs, engines)
    assert all(f"{node.address} has {node.cpus:g} CPUs" in str(refused.value) for node in nodes)
