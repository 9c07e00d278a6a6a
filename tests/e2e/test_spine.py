"""The spine in docs/architecture.md is the way of a real request: server and engine note every function that they enter for it."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.e2e.server_process import ServerProcess
from tests.source_tree import PACKAGES, ROOT
from tests.test_docs import spine

pytestmark = pytest.mark.processes

BODY = {"prompt": "Water turns the", "max_tokens": 3, "temperature": 0.7, "seed": 1, "stream": True}


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).with_name("tracer")))
    monkeypatch.setenv("TRACED_FOLDERS", os.pathsep.join(f"{ROOT / package}/" for package in PACKAGES))
    monkeypatch.setenv("TRACE_RESULTS", str(tmp_path))
    process = ServerProcess("--kv-blocks", "40", "--device", "cpu")
    yield process
    assert process.stop() == 0, "".join(process.output)


def trace(server, folder):
    """What both processes enter for one streamed completion, in order of time: files, with the parts of each function's name."""
    pids = [server.process.pid, server.engine.pid]

    def told(number, result):
        paths = [folder / f"{pid}.{result}" for pid in pids]
        for pid in pids:
            os.kill(pid, number)
        server.wait_until(lambda: all(path.exists() for path in paths))
        return [line.split(maxsplit=2) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]

    told(signal.SIGUSR1, "begun")
    answer = httpx.post(f"{server.url}/v1/completions", json=BODY, timeout=60)
    assert answer.text.endswith("data: [DONE]\n\n")
    calls = sorted(told(signal.SIGUSR2, "calls"), key=lambda call: float(call[0]))
    return [(str(Path(file).relative_to(ROOT)), name.split(".")) for _, file, name in calls]


def test_a_completion_passes_every_file_of_the_spine_in_its_order(server, tmp_path):
    calls = iter(trace(server, tmp_path))
    for number, file, name in spine():
        wanted = name.split(".")[-1]
        assert any(entered == file and wanted in parts for entered, parts in calls), f"{number}: {file} {name}"
