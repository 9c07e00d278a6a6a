"""`headrace serve --http-processes 2` as users run it, with an engine that answers at once: two processes are one server."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from server.bench import streams as bench
from tests.server.api.keyed import bearer, text_of
from tests.server.engines.harness import eventually, run

pytestmark = pytest.mark.processes
BODY = {"prompt": "Go on", "max_tokens": 4}
LONG = {"prompt": "Go on", "max_tokens": 8000, "ignore_eos": True, "stream": True}
COMPLETIONS = "/v1/completions"


class Served:
    """A server in a process of its own, its HTTP processes, and what it says."""

    def __init__(self, folder: Path, keys: str) -> None:
        (folder / "keys.yaml").write_text(keys)
        self.log = folder / "log"
        stub = Path(bench.__file__).with_name("stub_server.py")
        flags = [
            "--port",
            "0",
            "--http-processes",
            "2",
            "--api-keys",
            str(folder / "keys.yaml"),
            "--drain-seconds",
            "20",
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([sys.executable, stub, "0.02", *flags], stdout=log, stderr=log)
        self.url = self.printed(r"listens on (http://\S+)")
        self.wait_until(lambda: httpx.get(f"{self.url}/ready").status_code == 200 and self.both_up)

    def printed(self, pattern: str) -> str:
        return self.wait_until(lambda: re.search(pattern, self.log.read_text()))[1]

    def wait_until(self, condition, seconds=60.0):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(httpx.TransportError):
                if found := condition():
                    return found
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    @property
    def fronts(self) -> list[int]:
        return bench.http_processes(self.process.pid)

    def metrics(self) -> dict[str, float]:
        text = httpx.get(f"{self.url}/metrics", headers=bearer("ops-key")).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    @property
    def both_up(self) -> bool:
        return [up for name, up in self.metrics().items() if name.startswith("headrace_http_process_up")] == [1, 1]

    def connections(self) -> list[float]:
        return [self.metrics()[f'headrace_http_connections_open{{process="http-{index}"}}'] for index in (0, 1)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    keys = text_of(ann={}, ben={"requests_per_minute": 3}, cid={"concurrent_requests": 2}, ops={"admin": "true"})
    served = Served(tmp_path_factory.mktemp("fronts"), keys)
    yield served
    served.process.kill()
    served.process.wait()


@contextlib.asynccontextmanager
async def open_streams(server, count, key="ann", **body):
    """So many streams, each on a connection of its own; each yields its reader, from the first event on."""
    content = json.dumps(LONG | body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}-key\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content
    port = int(server.url.rsplit(":", 1)[1])
    pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for reader, writer in pairs:
        writer.write(request)
        reader.head = await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"data: ")
    yield [reader for reader, _ in pairs]
    for _, writer in pairs:
        writer.close()


async def ends(reader) -> bool:
    """Whether the connection is closed, before long."""
    try:
        while await asyncio.wait_for(reader.read(2**16), 2.0):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


def test_connections_are_spread_and_counted_together(server):
    before = server.metrics()

    async def check():
        async with open_streams(server, 6):
            await eventually(lambda: sum(server.connections()) == 7)  # one more asks for the metrics
            assert min(server.connections()) >= 3

    run(check)
    for _ in range(5):
        assert httpx.post(server.url + COMPLETIONS, json=BODY, headers=bearer("ann-key")).status_code == 200
    server.wait_until(lambda: server.metrics()["headrace_sequences_running"] == 0)
    after = server.metrics()
    ended = 'headrace_sequences_finished_total{reason="%s"}'
    assert [after[ended % reason] - before[ended % reason] for reason in ("length", "abort")] == [5, 6]


def test_limits_hold_for_all_processes_together(server):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(headers=bearer("ben-key"))) for _ in range(4)]  # a connection each
        statuses = [client.post(server.url + COMPLETIONS, json=BODY).status_code for client in clients]
    assert statuses == [200, 200, 200, 429]

    async def check():
        async with open_streams(server, 2, key="cid"):
            answer = await asyncio.to_thread(
                lambda: httpx.post(server.url + COMPLETIONS, json=BODY, headers=bearer("cid-key"))
            )
            assert answer.status_code == 429 and "concurrent_requests" in answer.text

    run(check)


def test_a_killed_process_takes_only_its_own_connections_along(server):
    async def check():
        async with open_streams(server, 4) as plain, open_streams(server, 4, resumable=True) as resumable:
            victim = server.fronts[0]
            os.kill(victim, signal.SIGKILL)
            ended = await asyncio.gather(*(ends_or_goes_on(reader) for reader in plain))
            assert {*ended} == {False, True}
            cut = await asyncio.gather(*(ends_or_goes_on(reader) for reader in resumable))
            assert {*cut} == {False, True}
            # Its own were aborted; a resumable one goes on without a reader, and can be read through any process.
            await eventually(lambda: server.metrics()["headrace_sequences_running"] == ended.count(False) + 4)
            async with httpx.AsyncClient(headers=bearer("ann-key")) as client:
                async with client.stream(
                    "GET", stream_of(server, resumable[cut.index(True)]), headers={"Last-Event-ID": "1"}
                ) as answer:
                    assert answer.status_code == 200
                    assert await anext(aiter(answer.aiter_lines())) == "id: 2"
                for reader in resumable:
                    await client.delete(stream_of(server, reader))
            await eventually(lambda: len(server.fronts) == 2 and victim not in server.fronts)

    run(check)
    restarts = 'headrace_http_process_restarts_total{process="http-%d"}'
    server.wait_until(lambda: server.both_up)
    assert sum(server.metrics()[restarts % index] for index in (0, 1)) == 1
    assert "was killed by SIGKILL; starting it again" in server.log.read_text()


def stream_of(server, reader) -> str:
    found = re.search(rb"(?i)x-stream-id: (\S+)", reader.head)
    return f"{server.url}/v1/streams/{found[1].decode()}"


async def ends_or_goes_on(reader) -> bool:
    """Whether the connection ends; it goes on if events still come."""
    end = asyncio.get_running_loop().time() + 0.7
    with contextlib.suppress(ConnectionResetError):
        while data := await reader.read(2**16):
            if asyncio.get_running_loop().time() > end and data:
                return False
    return True


def test_a_signal_lets_all_open_streams_end(server):
    async def check():
        async with open_streams(server, 4, max_tokens=60) as readers:
            server.process.send_signal(signal.SIGTERM)
            texts = await asyncio.gather(*(reader.read() for reader in readers))
            assert all(text.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n") for text in texts)

    children = psutil.Process(server.process.pid).children()
    assert len(children) == 3
    run(check)
    assert server.process.wait(60) == 0, server.log.read_text()
    assert not psutil.wait_procs(children, 10)[1]


def test_when_the_server_is_killed_its_processes_end(tmp_path):
    server = Served(tmp_path, text_of(ann={}, ops={"admin": "true"}))

    async def check():
        async with open_streams(server, 2) as readers:
            server.process.kill()
            assert all([await ends(reader) for reader in readers])

    fronts = [psutil.Process(pid) for pid in server.fronts]
    run(check)
    server.process.wait()
    assert not psutil.wait_procs(fronts, 10)[1]
