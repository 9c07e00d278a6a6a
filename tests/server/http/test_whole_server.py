"""The application behind real connections, over a scripted engine: what clients do wrong ends in the engine, too."""

import asyncio
import json
import socket
import sys
from dataclasses import replace

import pytest

from server.body_room import BodyRoom
from server.engines.engines import Engines
from tests.server.engines.harness import eventually, make_app, run, running
from tests.server.engines.scripted_engine import HOLD
from tests.server.http import real_server
from tests.server.http.real_server import QUICK, answers, get, statuses

pytestmark = pytest.mark.processes


def post(path: str, body: object, *lines: bytes, version: str = "1.1") -> bytes:
    content = json.dumps(body).encode()
    head = b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: %d" % len(content)))
    return f"POST {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n".encode() + head + b"\r\n" + content


def served(check, limits=None, **parts):
    async def body():
        async with running() as rig:
            app = make_app(rig.settings, Engines([rig.client]), rig.metrics, rig.drain, **parts)
            async with real_server.running(app, limits) as server:
                await asyncio.wait_for(check(server, rig), 60)

    run(body)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("upgrade", [[], [b"Connection: Upgrade", b"Upgrade: h2c"]], ids=["plain", "upgrade"])
@pytest.mark.parametrize("eof", [False, True])
def test_every_kind_of_client_gets_the_same_answer(version, stream, upgrade, eof):
    async def check(server, rig):
        body = {"prompt": [5, 6], "max_tokens": 4, "stream": stream}
        data = await server.ask(post("/v1/completions", body, *upgrade, version=version), eof=eof)
        status, headers, content = [each for each in answers(data) if each[0] != 100][-1]
        assert status == 200 and ("transfer-encoding" in headers) == (stream and version == "1.1")
        if stream:
            assert content.endswith(b"data: [DONE]\n\n") and content.startswith(b"data: {")
        else:
            assert json.loads(content)["usage"]["completion_tokens"] == 4

    served(check)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_sequences_in_the_engine(stream):
    async def check(server, rig):
        _, writer = await server.open()
        writer.write(post("/v1/completions", {"prompt": [HOLD], "max_tokens": 4, "stream": stream}))
        await eventually(lambda: rig.client.open_count == 1)
        writer.close()
        await eventually(lambda: rig.client.open_count == 0 and len(server.connections) == 0)

    served(check)


def test_head_of_a_stream_without_end_is_its_head():
    async def check(server, rig):
        path = f"/v1/engines/{rig.client.name}/blocks"
        kept, closed = (get(path, method="HEAD", close=close) for close in (False, True))
        data = await server.ask((kept + closed).replace(b"Host: here", b"Host: localhost"))
        heads = data.split(b"\r\n\r\n")
        assert [head.split(b"\r\n")[0] for head in heads] == [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b""]
        assert b"content-type: application/x-ndjson" in heads[0]
        await eventually(lambda: not rig.client.published.blocks.wanted)

    served(check)


def test_a_body_over_the_limit_is_answered_413_to_a_client_that_sends_it_all_first():
    def client(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 33554432\r\n\r\n")
            for _ in range(32):
                connection.sendall(b" " * 2**20)
            return connection.recv(65536)

    async def check(server, rig):
        ((status, headers, body),) = answers(await asyncio.to_thread(client, server.port))
        assert status == 413 and headers["connection"] == "close" and b"33554432" in body

    served(check)


def long_body(size: int) -> bytes:
    content = b'{"prompt": [5, 6], "max_tokens": 2' + b" " * size + b"}"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % len(content) + content


def test_bodies_that_come_faster_than_they_are_parsed_wait_and_are_all_answered():
    """Twelve of 1 MB, which all send half of it first, in a room for two of them."""
    room = BodyRoom(limit=2**21, patience=600)
    most = 0

    async def check(server, rig):
        nonlocal most
        connections = [await server.open() for _ in range(12)]
        request = long_body(10**6)
        for _, writer in connections:
            writer.write(request[: len(request) // 2])
        for _, writer in connections:
            for start in range(len(request) // 2, len(request), 2**16):
                writer.write(request[start : start + 2**16])
                most = max(most, room.held)
                await asyncio.sleep(0)
        assert [statuses(await reader.read()) for reader, _ in connections] == [[200]] * 12
        for _, writer in connections:
            writer.close()

    served(check, bodies=room)
    assert room.held == 0
    assert 2**21 < most <= 2**21 + 10**6 + 12 * 3 * 2**16


def test_a_body_that_finds_no_room_for_long_is_refused_and_small_ones_never_are():
    async def check(server, rig):
        first = await server.open()
        first[1].write(long_body(600_000)[:400_000])
        await eventually(lambda: room.held > 300_000)
        ((status, headers, body),) = answers(await server.ask(long_body(200_000)))
        assert status == 503 and headers["retry-after"] and b"too_many_bodies" in body
        assert statuses(await server.ask(long_body(1000))) == [200]
        first[1].close()
        await eventually(lambda: room.held == 0)
        assert statuses(await server.ask(long_body(200_000))) == [200]

    room = BodyRoom(limit=300_000, patience=0.05)
    served(check, bodies=room)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ([b"Content-Length: 33554432"], 413), ([b"Content-Length: 5", b"Origin: https://evil.example"], 403),
        ([b"Content-Length: 5", b"Transfer-Encoding: chunked"], 400), ([b"Content-Length: 5", b"Host: there"], 400),
    ],
)  # fmt: skip
def test_who_asks_before_sending_a_body_that_is_refused_is_not_told_to_go_on(lines, status):
    async def check(server, rig):
        head = [b"POST /v1/completions HTTP/1.1", b"Host: localhost", b"Expect: 100-continue", *lines]
        found = answers(await server.ask(b"\r\n".join(head) + b"\r\n\r\n"))
        assert [answered for answered, _, _ in found] == [status]
        assert found[0][1]["connection"] == "close"

    served(check, QUICK)


def test_a_target_with_a_host_is_this_servers_if_the_host_is():
    async def check(server, rig):
        mine = post("/v1/completions", {"prompt": [5, 6], "max_tokens": 2}).replace(
            b" /v1", b" http://LOCALHOST:81/v1", 1
        )
        assert statuses(await server.ask(mine)) == [200]
        assert statuses(await server.ask(mine.replace(b"Host: localhost", b"Host: other.example"))) == [200]
        ((status, _, body),) = answers(await server.ask(mine.replace(b"//LOCALHOST:81", b"//other.example", 1)))
        assert status == 403 and b"forbidden_host" in body

    served(check)


@pytest.mark.parametrize("sent", [b"", b"{", b'{"prompt": [5'])
def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing_behind(sent):
    async def check(server, rig):
        _, writer = await server.open()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + sent)
        await eventually(lambda: len(server.web.server_state.tasks) == 1)
        writer.close()
        await eventually(lambda: len(server.web.server_state.tasks) == 0 and len(server.connections) == 0)
        assert room.held == 0 and rig.client.open_count == 0

    room = BodyRoom()
    served(check, bodies=room)


def test_nothing_opens_a_file_while_requests_are_served():
    """At the limit on descriptors it would fail, and with it a request that needs none."""
    opened: list[object] = []
    counting = False

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if counting and event == "open":
            opened.append(arguments[0])

    sys.addaudithook(audit)

    async def check(server, rig):
        nonlocal counting
        counting = True
        try:
            for stream in (False, True):
                for path, body in (
                    ("/v1/completions", {"prompt": "a b", "max_tokens": 3}),
                    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
                ):
                    await server.ask(post(path, body | {"stream": stream}))
            for path in ("/live", "/ready", "/v1/models", "/version", "/nowhere"):
                await server.ask(get(path).replace(b"Host: here", b"Host: localhost"))
            await server.ask(b"garbage\r\n\r\n")
        finally:
            counting = False

    served(check, replace(QUICK, head_seconds=20))
    assert opened == []
