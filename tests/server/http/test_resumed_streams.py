"""Resumable streams over real sockets: connections that are reset at any byte, closed half, or left open and forgotten."""

import asyncio
import json
import random
import socket
import struct
import threading

import pytest
import uvloop

from loadtest.client.sse_grammar import validate_body
from loadtest.client.target import Target
from loadtest.replay import ReplayPlan, replay
from loadtest.workload.arrivals import Poisson
from loadtest.workload.plan import LoadShape
from loadtest.workload.traces.read import read_trace
from tests.server.api.scripted import Server
from tests.server.engines.harness import ROOT
from tests.server.http import real_server
from tests.server.http.real_server import answers
from tests.server.stream.test_event_buffer import last_id, whole_events

pytestmark = pytest.mark.processes

TEXT = "Water, wörld and wheels; " * 4
TOKENS = len(TEXT.encode())
RESET = struct.pack("ii", 1, 0)


class Served:
    """A server in a thread of its own, so that its clients may block."""

    def __init__(self):
        self.loop = uvloop.new_event_loop()
        self.stopped = asyncio.Event()
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.started.wait()

    def _run(self):
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self._serve())

    async def _serve(self):
        self.server = Server(TEXT)
        async with real_server.running(self.server.app) as web:
            self.port = web.port
            self.started.set()
            await self.stopped.wait()
        self.server.context.streams.stop()

    def do(self, action):
        """The result of `action`, which is called where the server runs."""

        async def acting():
            return action()

        return asyncio.run_coroutine_threadsafe(acting(), self.loop).result(60)

    def eventually(self, condition):
        async def waiting():
            while not condition():
                await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(asyncio.wait_for(waiting(), 60), self.loop).result(60)

    def close(self):
        self.do(self.stopped.set)
        self.thread.join()

    def opens(self, data):
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        connection.sendall(data)
        return connection

    def asks(self, **fields):
        body = {"prompt": "a", "max_tokens": TOKENS, "stream": True, "resumable": True, **fields}
        content = json.dumps({"stream_options": {"include_usage": True}, **body}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        return self.opens(head % len(content) + content)

    def goes_on(self, id, after=None, close=True):
        lines = b"" if after is None else b"Last-Event-ID: %d\r\n" % after
        lines += b"Connection: close\r\n" if close else b""
        return self.opens(b"GET /v1/streams/%b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (id.encode(), lines))


@pytest.fixture(scope="module")
def served():
    server = Served()
    yield server
    server.close()


def received(connection, most=10**9):
    """So many bytes of an answer, or all of it."""
    data = b""
    while len(data) < most and (part := connection.recv(min(4096, most - len(data)))):
        data += part
    return data


def reset(connection):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()


def body_of(data: bytes) -> tuple[str, bytes]:
    """Id of the stream and as much of its body as came, of an answer that may end anywhere."""
    head, _, chunks = data.partition(b"\r\n\r\n")
    id = next(line[13:].decode() for line in head.split(b"\r\n") if line.lower().startswith(b"x-stream-id: "))
    body = b""
    while chunks:
        size, _, chunks = chunks.partition(b"\r\n")
        count = int(size, 16) if size and chunks else 0
        body, chunks = body + chunks[:count], chunks[count + 2 :]
    return id, body


def whole(connection):
    with connection:
        ((status, _, body),) = answers(received(connection))
    assert status == 200
    return body


@pytest.mark.parametrize("seed", range(6))
def test_connections_that_are_reset_at_any_byte(served, seed):
    draw = random.Random(seed)
    connection = served.asks(n=draw.choice([1, 2]))
    id, kept = "", b""
    while b"[DONE]" not in kept:
        data = received(connection, draw.choice([400, 700, 3000, 20_000]))
        reset(connection)
        if b"\r\n\r\n" in data:
            id, body = body_of(data)
            kept += whole_events(body)
        connection = served.goes_on(id, last_id(kept))
    connection.close()
    assert kept == whole(served.goes_on(id)), "once per byte"
    summary = validate_body(kept, choices=len({*summary_indices(kept)}), include_usage=True)
    assert {choice.text for choice in summary.choices.values()} == {TEXT}


def summary_indices(body):
    for line in body.split(b"\n"):
        if line.startswith(b"data: {"):
            yield from (choice["index"] for choice in json.loads(line[6:])["choices"])


def paused(served, **fields):
    """A connection that has had its first event, of an engine that stands still."""
    served.do(served.server.process.gate.clear)
    before = len(served.server.process.requests)
    connection = served.asks(**fields)
    served.eventually(lambda: len(served.server.process.requests) > before)
    served.do(served.server.process.step)
    data = b""
    while b"data: {" not in data or not data.endswith(b"\n\n\r\n"):
        data += connection.recv(4096)
    return connection, *body_of(data)


def test_who_resumes_while_the_first_connection_looks_alive_gets_the_rest(served):
    first, id, body = paused(served)
    second = served.goes_on(id, last_id(body))
    told = received(first)
    first.close()
    assert b"stream_taken" in told and b"id: " not in told
    served.do(served.server.process.gate.set)
    rest = whole(second)
    assert validate_body(body + rest, include_usage=True).text == TEXT


@pytest.mark.parametrize("way", ["reset", "close"])
def test_without_resumable_a_client_that_leaves_still_ends_its_request(served, way):
    served.do(served.server.process.gate.clear)
    before = served.do(lambda: len(served.server.process.aborted))
    connection = served.asks(resumable=False)
    served.eventually(lambda: served.server.engine.open_count == 1)
    reset(connection) if way == "reset" else connection.close()
    served.eventually(lambda: served.server.engine.open_count == 0)
    assert served.do(lambda: len(served.server.process.aborted)) == before + 1
    served.do(served.server.process.gate.set)


def test_a_stream_goes_on_without_anybody_and_is_deleted_over_the_wire(served):
    connection, id, _ = paused(served)
    reset(connection)
    served.eventually(lambda: served.server.context.drain.active == 1)
    served.do(served.server.process.gate.set)
    served.eventually(lambda: served.server.engine.open_count == 0)
    with served.opens(
        b"DELETE /v1/streams/%b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % id.encode()
    ) as asks:
        ((status, _, body),) = answers(received(asks))
    assert status == 200 and json.loads(body)["deleted"]
    with served.goes_on(id, 0) as asks:
        ((status, _, body),) = answers(received(asks))
    assert status == 404 and served.do(lambda: served.server.context.drain.active) == 0


def test_a_connection_is_used_again_after_204_and_head(served):
    """Neither has a body, so what follows on the connection is read as what it is."""
    body = whole(served.asks())
    id = json.loads(body.split(b"data: ")[1].split(b"\n")[0])["id"]
    with served.goes_on(id, last_id(body), close=False) as connection:
        assert connection.recv(4096).startswith(b"HTTP/1.1 204 ")
        connection.sendall(b"HEAD /v1/streams/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % id.encode())
        head = connection.recv(4096)
        assert head.startswith(b"HTTP/1.1 200 ") and head.endswith(b"\r\n\r\n") and b"chunked" not in head
        connection.sendall(
            b"GET /v1/streams/%b?lastEventId=%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            % (id.encode(), last_id(body) - 1)
        )
        assert b"data: [DONE]\n\n" in received(connection)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"Host: evil.example", b"forbidden_host"),
        (b"Host: localhost\r\nOrigin: https://evil.example", b"forbidden_origin"),
    ],
)
def test_foreign_pages_and_names_get_nothing_of_a_stream(served, line, code):
    connection, id, _ = paused(served)
    for method in (b"GET", b"HEAD", b"DELETE"):
        with served.opens(
            b"%b /v1/streams/%b HTTP/1.1\r\n%b\r\nConnection: close\r\n\r\n" % (method, id.encode(), line)
        ) as asks:
            data = received(asks)
        assert data.startswith(b"HTTP/1.1 403 ") and (method == b"HEAD" or code in data)
    served.do(served.server.process.gate.set)
    with connection:
        assert b"[DONE]" in received(connection)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_the_load_tester_breaks_streams_and_finds_no_fault(served, endpoint):
    shape = LoadShape(limit=12, arrivals=Poisson(200), max_prompt=40, max_output=60)
    trace = read_trace(ROOT / "tests/loadtest/data/burstgpt_1.csv")
    plan = ReplayPlan(trace=trace, shape=shape, patience=60, stall=60, max_lateness=60, verify=3, breaks=3)
    found = replay(plan, Target(base_url=f"http://127.0.0.1:{served.port}", endpoint=endpoint))
    assert [(record.error, record.detail, record.violations) for record in found.records] == [(None, None, [])] * 12
    assert found.client["breaks"] >= 12
    assert all(record.output_tokens == record.asked_output for record in found.records)
