"""The server as a process: signals, draining over real connections, exit codes, nothing left behind."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.engines.process import HUGE_PAGES, EngineProcess
from tests.server.engines.harness import ROOT
from tests.server.engines.scripted_engine import BEGIN, HOLD

pytestmark = pytest.mark.processes

SCRIPT = Path(__file__).with_name("serve_scripted.py")
QUICK = "drain_seconds=1"  # which the scripted engine takes to its end when the server stops


class Served:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        words = process.stdout.readline().split()
        self.engine_pid, self.port = int(words[1]), int(words[3])
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def until(self, path: str, status: int) -> httpx.Response:
        while True:
            response = self.client.get(path)
            if response.status_code == status:
                return response
            time.sleep(0.02)

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        code = self.process.wait(60)
        deadline = time.monotonic() + 60
        while alive(self.engine_pid):
            assert time.monotonic() < deadline, "the engine outlived the server"
            time.sleep(0.02)
        return code


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(FileNotFoundError):
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()  # an orphan without a reaper
    return False


@contextlib.contextmanager
def served(tmp_path: Path, start: str = "ok", *knobs: str) -> Iterator[Served]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), start, *knobs],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    ) as process:  # fmt: skip
        server = Served(process)
        try:
            yield server
        finally:
            server.client.close()
            process.kill()


def held_stream(server: Served, lines: list[str]) -> threading.Thread:
    """A streamed request that the engine never finishes, read by a thread."""
    body = {"prompt": [HOLD], "max_tokens": 3, "stream": True}

    def read() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=60) as client:
            try:
                response = client.post("/v1/completions", json=body)
            except httpx.TransportError:
                lines.append("cut")
                return
            lines.append(str(response.status_code))
            lines.extend(line for line in response.text.splitlines() if line)

    thread = threading.Thread(target=read)
    thread.start()
    running = "headrace_sequences_running 1.0"
    while running not in server.client.get("/metrics").text:
        time.sleep(0.02)
    return thread


def test_a_signal_ends_an_idle_server_cleanly(tmp_path):
    with served(tmp_path, "ok", QUICK) as server:
        server.until("/ready", 200)
        server.signal()
        assert server.ended() == 0
        assert not list(tmp_path.glob("headrace-*"))
        output = server.process.stdout.read()
        assert "Memory plan" in output and "Start-up" in output and f"http://127.0.0.1:{server.port}" in output
        assert server.process.stderr.read() == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_drain_refuses_new_requests_and_ends_the_rest_with_a_reason(tmp_path, number):
    with served(tmp_path, "ok", "drain_seconds=1.5") as server:
        server.until("/ready", 200)
        lines: list[str] = []
        thread = held_stream(server, lines)
        server.signal(number)
        assert "shutting down" in server.until("/ready", 503).text
        refused = server.client.post("/v1/completions", json={"prompt": [5]})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) == 2
        thread.join(60)
        assert server.ended() == 0
        assert "the server is shutting down" in lines[-1]
        error = json.loads(lines[-1].removeprefix("data: "))["error"]
        assert error.keys() == {"message", "type", "param", "code"}


def test_the_second_signal_ends_at_once(tmp_path):
    with served(tmp_path, "ok", "drain_seconds=3600") as server:
        server.until("/ready", 200)
        lines: list[str] = []
        thread = held_stream(server, lines)
        server.signal()
        server.until("/ready", 503)
        server.signal()
        assert server.ended() == 128 + signal.SIGTERM
        told = "stopping: 1 open request, at most 3600 s; a second signal ends them now"
        assert server.process.stderr.read().count(told) == 1
        assert not list(tmp_path.glob("headrace-*"))
        thread.join(60)
        assert lines == ["cut"]


def test_a_signal_while_the_engine_starts_ends_at_once(tmp_path):
    with served(tmp_path, "never") as server:
        assert "starting" in server.until("/ready", 503).text
        assert server.client.get("/live").status_code == 200
        server.signal()
        assert server.ended() == 0


def test_an_engine_that_cannot_start_ends_the_server_with_one_line(tmp_path):
    with served(tmp_path, "refuse") as server:
        assert server.ended() == 1
        errors = server.process.stderr.read().splitlines()
        assert len(errors) == 1
        assert "no such weights; given up" in errors[0]


def test_the_engine_does_not_outlive_a_killed_server(tmp_path):
    with served(tmp_path) as server:
        server.until("/ready", 200)
        server.signal(signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL
        assert not list(tmp_path.glob("headrace-*"))


def test_a_killed_engine_is_replaced_while_the_server_goes_on(tmp_path):
    with served(tmp_path, "ok", QUICK) as server:
        server.until("/ready", 200)
        lines: list[str] = []
        thread = held_stream(server, lines)
        os.kill(server.engine_pid, signal.SIGKILL)
        while "headrace_replayed_requests_total 1.0" not in server.client.get("/metrics").text:
            time.sleep(0.02)
        server.until("/health", 200)
        answer = server.client.post("/v1/completions", json={"prompt": [5], "max_tokens": 4})
        assert answer.json()["usage"]["completion_tokens"] == 4
        server.signal()
        thread.join(60)
        assert lines[0] == "503" or "shutting down" in lines[-1]
        assert server.ended() == 0
        said = server.process.stderr.read().splitlines()
        assert len([line for line in said if "headrace.engine" in line]) == 1, said


def test_a_port_in_use_is_said_before_anything_is_started(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = (
            "from configs.model.source import resolve_model; from configs.settings import Settings;"
            f"from server.run import run; import sys; sys.exit(run(Settings(port={port}), resolve_model(None)))"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(f"headrace: 127.0.0.1:{port}: Address already in use. Stop what uses it")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_imported_before_the_engine_is_started():
    code = "import sys, server.run; print([m for m in ('fastapi', 'uvicorn', 'tokenizers', 'torch', 'httpx') if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).strip() == "[]"


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /x HTTP/1.1\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"],
)
def test_what_is_never_sent_does_not_hold_the_server_past_its_promise(tmp_path, sent):
    """The default promise for clients' deadlines is longer than this server's drain."""
    with served(tmp_path, "ok", "drain_seconds=1") as server:
        server.until("/ready", 200)
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(sent)
            server.until("/live", 200)
            server.signal()
            answer = client.recv(65536)
            assert (b" 503 " in answer and b"shutting down" in answer) if sent.startswith(b"POST") else answer == b""
        assert server.ended() == 0
        said = server.process.stderr.read().splitlines()
        assert len(said) <= sent.startswith(b"POST"), (
            "it waits for a request that had begun to arrive before the signal"
        )


def broken_stream(server: Served) -> tuple[str, bytes]:
    """Id and first event of a resumable stream that the engine never finishes, and whose client has left."""
    server.until("/ready", 200)
    asked = {"prompt": [BEGIN], "max_tokens": 3, "stream": True, "resumable": True}
    with server.client.stream("POST", "/v1/completions", json=asked) as answer:
        return answer.headers["x-stream-id"], next(answer.iter_raw())


def test_a_client_may_come_back_while_the_server_stops(tmp_path):
    with served(tmp_path, "ok", "drain_seconds=4") as server:
        stream, first = broken_stream(server)
        server.signal()
        server.until("/ready", 503)
        with server.client.stream("GET", f"/v1/streams/{stream}") as again:
            assert next(again.iter_raw()) == first
        assert server.process.poll() is None
        assert server.client.delete(f"/v1/streams/{stream}").status_code == 200
        assert server.ended() == 0


def test_a_stop_does_not_wait_for_a_client_for_longer_than_it_may(tmp_path):
    with served(tmp_path, "ok", "drain_seconds=0.3") as server:
        broken_stream(server)
        server.signal()
        assert server.ended() == 0


@pytest.mark.parametrize("own", [None, "glibc.malloc.arena_max=2"])
def test_an_engine_asks_for_huge_pages_unless_the_operator_has_tuned_the_library(own, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("HEADRACE_API_KEY", "secret")
    if own is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    process = EngineProcess([sys.executable, "-c", "import sys; sys.stdin.read()"])
    try:
        while not (told := Path(f"/proc/{process.pid}/environ").read_bytes()):
            time.sleep(0.001)  # the kernel has not laid it out yet
        # The C library cuts the list at its colons, where it lies.
        assert f"GLIBC_TUNABLES={own or HUGE_PAGES}".replace(":", "\0").encode() in told
        assert b"secret" not in told
    finally:
        process.kill()
        process.close()
