"""A server that ends before it is up, at any point of its start: no traceback, no process, no file."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.source_tree import ROOT

pytestmark = pytest.mark.processes

# Raises a signal against itself when a module is about to be imported.
START = """
import os, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})
sys.argv = ["headrace", "serve", "--port", "0", "--load-format", "dummy"]
from server.cli import main
assert "signal" not in sys.modules
sys.meta_path.insert(0, Signal())
sys.exit(main())
"""
ENGINE = """
import sys, time
from engine import __main__ as engine
from scheduler.types.messages import Heartbeat
def hang():
    print("hangs", flush=True)
    {hang}
class Loop:
    run = staticmethod(hang)
class Stuck(engine.Starter):
    def start(self):
        return hang() if {loading} else (Loop, Heartbeat(doing="idle"))
engine.Starter = Stuck
engine.LAST_SECONDS = 0.1
sys.exit(engine.main())
"""


@pytest.fixture(autouse=True)
def signals_as_from_a_terminal():
    """Ctrl-C ends what a test starts also where the tests themselves ignore it, as a job in the background of a shell does."""
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, inherited)


def run(code: str, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("signal", signal.SIGINT),
        ("argparse", signal.SIGINT),
        ("pydantic", signal.SIGINT),
        ("uvloop", signal.SIGTERM),
    ],
)
def test_a_signal_during_the_start_ends_it_without_a_word(module, number, tmp_path):
    with run(START.format(module=module, number=int(number)), tmp_path) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, "")
    deadline = time.monotonic() + 60
    while list(tmp_path.iterdir()):  # an engine that was started takes its folder along
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_start_removes_what_a_killed_server_left_behind(tmp_path):
    left = tmp_path / "headrace-ab12cd34"
    left.mkdir()
    (left / "in-use").touch()
    with run(START.format(module="server.serving", number=int(signal.SIGINT)), tmp_path) as process:
        _, said = process.communicate(timeout=60)
    assert not left.exists()
    (line,) = said.splitlines()
    assert line.endswith(f"removed {left}, which a server that was killed had left behind")


@pytest.mark.parametrize(
    ("loading", "hang"), [(True, "time.sleep(3600)"), (True, "while True: pass"), (False, "time.sleep(3600)")]
)
def test_an_engine_ends_with_its_server_while_it_loads_and_while_it_hangs(loading, hang, tmp_path):
    sockets = tmp_path / "headrace-x"
    sockets.mkdir()
    arguments = ["--settings", "{}", "--source", json.dumps({"path": "/none", "kind": "hf", "name": "none"})]
    wires = [word for name in ("commands", "events") for word in (f"--{name}", f"ipc://{sockets}/{name}")]
    with run(ENGINE.format(loading=loading, hang=hang), tmp_path, *arguments, *wires) as process:
        assert process.stdout.readline() == "hangs\n"
        process.stdin.close()
        process.stdin = None
        assert process.wait(60) == 0
        assert process.stderr.read() == ""
    assert not sockets.exists()
