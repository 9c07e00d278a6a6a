"""A server is started with each combination of flags and is gone after its run, however that ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loadtest.client.usage import ProcessUsage, listener
from loadtest.grid.cli import main
from loadtest.grid.server import ServerFailed, answers, running
from loadtest.report.run_file import read_run

DATA = Path(__file__).parents[1] / "data"
STUB = str(Path(__file__).parents[1] / "stub_server.py")


pytestmark = pytest.mark.processes


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def stub(port: int, *more: str) -> list[str]:
    return [sys.executable, STUB, "--port", str(port), *more]


def test_combinations_are_measured_and_compared(port, tmp_path, capsys):
    trace = [
        str(DATA / "burstgpt_1.csv"),
        "--limit",
        "6",
        "--arrivals",
        "poisson",
        "--rate",
        "100",
        "--max-prompt",
        "40",
    ]
    options = ["--target", f"http://127.0.0.1:{port}/v1", "--output", str(tmp_path / "out"), "--max-output", "6"]
    options += ["--quiet", "--max-lateness", "60000", "--slo", "e2e=10s"]
    code = main([*trace, *options, "--", *stub(port, "--ttft", "{0,0.2}", "{--gap=0,--nonsense}")])
    said = capsys.readouterr()
    assert code == 1, "two of four do not start"
    assert "--ttft 0.2, --nonsense" in said.err and "ended with status 2" in said.err
    fast, slow = (read_run(tmp_path / "out" / f"{place}-1.json") for place in (1, 3))
    assert fast.label == "--ttft 0, --gap=0" and min(record.ttft for record in slow.records) >= 0.2
    assert fast.server["memory_max"] > 2**20 and fast.server["processes"] == 1
    page = (tmp_path / "out" / "grid.html").read_text()
    assert "--ttft 0.2, --gap=0" in page and "worse" in page and "failed" in page
    assert main([*trace, *options, "--", *stub(port, "--ttft", "{0,0.2}")]) == 2, "nothing is overwritten unasked"
    assert not answers(f"http://127.0.0.1:{port}/v1")


LOADING = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Loading(BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        self.answer(200, {"data": [{"id": "m"}]})
    def do_POST(self):
        type(self).asked += 1
        print(self.asked, flush=True)
        self.answer(503 if self.asked < 3 else 200, {})
    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
HTTPServer(("127.0.0.1", int(sys.argv[1])), Loading).serve_forever()
"""


def test_a_server_that_lists_its_models_while_it_loads_them_is_waited_for(port, tmp_path):
    command = [sys.executable, "-c", LOADING, str(port)]
    log = tmp_path / "log"
    with running(command, f"http://127.0.0.1:{port}/v1", log, start_seconds=60, stop_seconds=5):
        said = log.read_text().splitlines()
    assert "3" in said, "it was asked until it did not say 503"


def test_a_server_and_what_it_has_started_are_gone_whatever_happens(port, tmp_path):
    """It heeds no SIGTERM, and has a child."""
    code = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"subprocess.run({stub(port)!r}, stdout=subprocess.DEVNULL); signal.pause()"
    )
    target = f"http://127.0.0.1:{port}/v1"
    with (
        pytest.raises(ZeroDivisionError),
        running([sys.executable, "-c", code], target, tmp_path / "log", start_seconds=60, stop_seconds=0.2) as pid,
    ):
        assert listener(target) in {each.pid for each in psutil.Process(pid).children()}
        assert ProcessUsage(pid).summary() == {}, "one look says nothing yet"
        with (
            pytest.raises(ServerFailed, match="answers at"),
            running(["true"], target, tmp_path / "other", start_seconds=1, stop_seconds=1),
        ):
            pass
        raise ZeroDivisionError
    assert not psutil.pid_exists(pid) and not answers(target)


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_grid_and_its_server(signalled, port, tmp_path):
    command = [sys.executable, "-m", "loadtest.cli", "grid", str(DATA / "burstgpt_1.csv"), "--quiet", "--limit", "50"]
    command += ["--target", f"http://127.0.0.1:{port}/v1", "--output", str(tmp_path), "--arrivals", "poisson"]
    command += ["--rate", "1", "--", *stub(port, "--ttft", "{0,1}")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env={**os.environ})
    try:
        until = time.monotonic() + 60
        while not answers(f"http://127.0.0.1:{port}/v1") and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signalled)
        assert process.wait(60) == 130, process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert not answers(f"http://127.0.0.1:{port}/v1")
