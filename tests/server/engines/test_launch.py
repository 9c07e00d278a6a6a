"""An engine that cannot be launched leaves neither a child nor a folder nor a socket, and ends no supervisor."""

import sys
import tempfile

import pytest
import zmq

from engine.ipc.child import spawn
from server.engines.launch import launch
from server.engines.process import Endpoints, EngineProcess
from server.engines.wire import EngineWire
from tests.server.engines.harness import run, running

pytestmark = pytest.mark.processes

CHILD = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where private folders are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def children(folder, monkeypatch):
    """The children of processes whose folder's name is too long for a socket in it."""
    started = []

    def noted(arguments, **options):
        started.append(spawn(arguments, **options))
        return started[-1]

    def long(prefix):
        path = folder / (prefix + "x" * 100)
        path.mkdir()
        return path

    monkeypatch.setattr("server.engines.process.private_folder", long)
    monkeypatch.setattr("server.engines.process.spawn", noted)
    return started


def test_no_such_program(folder):
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        EngineProcess([str(folder / "no-such-program")])
    assert not list(folder.iterdir())


def test_no_socket(folder, children):
    with pytest.raises(OSError, match="cannot bind"):
        launch(CHILD)
    (child,) = children
    assert child.returncode is not None and child.stdin.closed
    assert not list(folder.iterdir())


def test_the_supervisor_survives_an_engine_that_has_no_socket(folder, children):
    async def body():
        async with running(until=lambda rig: rig.client.status.state == "dead") as rig:
            assert "cannot be started" in rig.client.status.failure and "cannot bind" in rig.client.status.failure
            assert not rig.processes

    run(body)


def test_a_wire_of_which_one_socket_is_not_bound_closes_the_other(tmp_path, monkeypatch):
    made, new = [], zmq.Context
    monkeypatch.setattr(zmq, "Context", lambda: made.append(new()) or made[-1])
    with pytest.raises(OSError, match="cannot bind"):
        EngineWire(Endpoints(f"ipc://{tmp_path}/commands", f"ipc://{tmp_path}/missing/events"))
    assert [context.closed for context in made] == [True]
