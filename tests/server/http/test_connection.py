"""Connections, over real sockets: versions, upgrades, smuggling, limits, deadlines, clients that half close or do not read."""

import asyncio
import contextlib
import socket
from dataclasses import replace

import pytest

from server.http.head import MAX_HEAD_BYTES
from tests.server.engines.harness import eventually, run
from tests.server.http.real_server import HOST, QUICK, answers, get, running, served, statuses
from tests.server.http.test_head import SMUGGLING

pytestmark = pytest.mark.processes

SECOND = b"GET /second HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"


# --- versions and methods ---


def test_requests_follow_each_other_on_one_connection_even_when_they_come_at_once():
    async def check(server, echo):
        one = b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
        two = b"POST /chunks HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n"
        data = await server.ask(one + two + SECOND)
        assert statuses(data) == [200, 200, 200]
        assert echo.requests == [("POST", "/a", b"abc"), ("POST", "/chunks", b"de"), ("GET", "/second", b"")]

    served(check)


def test_hundreds_of_requests_at_once_are_answered_in_their_order():
    async def check(server, echo):
        asked = b"".join(get(f"/{i}", close=False) for i in range(300))
        posts = b"POST /post HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc"
        found = answers(await server.ask(asked + posts + SECOND + b"GET /never HTTP/1.1\r\n"))
        assert len(found) == 302 and {status for status, _, _ in found} == {200}
        assert [path for _, path, _ in echo.requests] == [f"/{i}" for i in range(300)] + ["/post", "/second"]

    served(check)


def test_extensions_and_trailers_are_read_over_and_nothing_else():
    async def check(server, echo):
        head = b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTrailer: X-Sum, Y\r\n\r\n"
        body = b'3;a="b; c";d\r\nabc\r\n0002 ;e\r\n\r\n\r\n0;last\r\nX-Sum: 1\r\nY:\r\nContent-Length: 99\r\n\r\n'
        assert statuses(await server.ask(head + body + SECOND)) == [200, 200]
        assert echo.requests == [("POST", "/x", b"abc\r\n"), ("GET", "/second", b"")]

    served(check)


def test_a_large_body_in_chunks_of_one_byte_is_read_while_others_are_answered():
    async def check(server, echo):
        head = b"POST /tiny HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        asking = asyncio.create_task(server.ask(head + b"1\r\na\r\n" * 2**18 + b"0\r\n\r\n"))
        while not asking.done():
            assert statuses(await server.ask(get("/other"))) == [200]
        assert statuses(asking.result())[0] == 200
        others = [path for _, path, _ in echo.requests]
        assert others.index("/tiny") > 3, "others had to wait"
        assert next(body for _, path, body in echo.requests if path == "/tiny") == b"a" * 2**18

    served(check)


def test_a_body_of_one_byte_a_packet_is_read():
    async def check(server, echo):
        reader, writer = await server.open()
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"POST /x HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 50\r\n\r\n" + b"a" * 50:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert statuses(await reader.read()) == [200] and echo.requests == [("POST", "/x", b"a" * 50)]
        writer.close()

    served(check)


@pytest.mark.parametrize("first", [b"5", b"5;a", b"5\r\nab", b"5\r\nabcde", b"5\r\nabcde\r", b"5\r\nabcde\r\n0\r\nX: "])
def test_half_a_line_of_a_chunk_is_waited_for_and_stops_nobody(first):
    async def check(server, echo):
        whole = b"5\r\nabcde\r\n0\r\nX: y\r\n\r\n" if b";" not in first else b"5;a=b\r\nabcde\r\n0\r\n\r\n"
        reader, writer = await server.open()
        writer.write(b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + first)
        await asyncio.sleep(0.02)
        assert statuses(await server.ask(get("/other"))) == [200]
        writer.write(whole[len(first) :] + get("/last"))
        assert statuses(await reader.read()) == [200, 200]
        assert echo.requests == [("GET", "/other", b""), ("POST", "/x", b"abcde"), ("GET", "/last", b"")]
        writer.close()

    served(check)


def test_a_large_body_is_read_whole():
    async def check(server, echo):
        body = bytes(range(256)) * 8192
        head = b"POST /early-not HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        assert statuses(await server.ask(head + body)) == [200]
        assert echo.requests[0][2] == body

    served(check)


@pytest.mark.parametrize("path", ["/x", "/chunks"])
def test_http_1_0_is_answered_without_chunks_and_closed(path):
    async def check(server, echo):
        ((status, headers, body),) = answers(await server.ask(get(path, version="1.0", close=False)))
        assert status == 200 and "transfer-encoding" not in headers and headers["connection"] == "close"
        assert b'"path": "%b"' % path.encode() in body
        kept = await server.ask(get(path, b"Connection: keep-alive", version="1.0", close=False))
        assert answers(kept)[0][1]["connection"] == "close"

    served(check)


@pytest.mark.parametrize("path", ["/x", "/chunks"])
def test_head_has_the_head_and_no_body(path):
    async def check(server, echo):
        data = await server.ask(get(path, method="HEAD"))
        assert data.endswith(b"\r\n\r\n") and data.count(b"\r\n\r\n") == 1
        assert data.startswith(b"HTTP/1.1 200")

    served(check)


def test_a_client_that_waits_for_a_word_gets_it_before_it_sends_the_body():
    async def check(server, echo):
        reader, writer = await server.open()
        writer.write(b"POST /x HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()

    served(check)


# --- upgrades and smuggling ---


@pytest.mark.parametrize(
    "lines",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n",
        b"Connection: upgrade\r\nUpgrade: TLS/1.2, h2c\r\n", b"Upgrade: h2c\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("in_chunks", [False, True])
def test_an_upgrade_is_ignored_and_the_body_read(lines, late, in_chunks):
    """A body that looks like a request, and comes at once or later, is a body."""

    async def check(server, echo):
        reader, writer = await server.open()
        body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SECOND), SECOND) if in_chunks else SECOND
        length = b"Transfer-Encoding: chunked\r\n" if in_chunks else b"Content-Length: %d\r\n" % len(SECOND)
        writer.write(b"POST /x HTTP/1.1\r\n" + HOST + lines + length + b"\r\n")
        if late:
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(body + get("/last"))
        assert statuses(await reader.read()) == [200, 200]
        assert echo.requests == [("POST", "/x", SECOND), ("GET", "/last", b"")]
        writer.close()

    served(check)


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING)
def test_no_second_request_is_read_out_of_an_ambiguous_one(lines):
    async def check(server, echo):
        data = await server.ask(b"POST /x HTTP/1.1\r\n" + HOST + b"\r\n".join(lines) + b"\r\n\r\n0\r\n\r\n" + SECOND)
        ((status, headers, body),) = answers(data)
        assert status == 400 and headers["connection"] == "close" and b"malformed_http" in body
        assert echo.requests == [] and server.refusals == ["malformed_http"]

    served(check)


@pytest.mark.parametrize(
    "body",
    [
        b"5\n12345\n0\n\n",
        b"5\r\n123456\r\n0\r\n\r\n",
        b"5;a\nb\r\n12345\r\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"0\r\n x\r\n\r\n",
    ],
)
def test_nor_out_of_ambiguous_chunks(body):
    async def check(server, echo):
        head = b"POST /x HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        assert statuses(await server.ask(head + body + SECOND)) == [400]
        assert echo.requests == [] and echo.left == 1

    served(check)


# --- limits of a head ---


@pytest.mark.parametrize(
    "head",
    [
        b"GET /x HTTP/1.1\r\nHost: here\r\nX: ",
        b"GET /",
        b"GET /x HTTP/1.1\r\nHost: here\r\n" + b"a: b\r\n" * 300 + b"\r\nX: ",
    ],
)
def test_a_head_without_bounds_is_refused_at_once_and_nothing_of_it_is_kept(head):
    async def check(server, echo):
        reader, writer = await server.open()
        writer.write(head)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                writer.write(b"a" * MAX_HEAD_BYTES)
                await writer.drain()
        writer.write_eof()
        assert statuses(await reader.read()) == [431]
        assert server.refusals == ["head_too_large"]
        assert statuses(await server.ask(get())) == [200]
        writer.close()

    served(check)


def test_a_client_that_sends_without_end_is_cut_after_a_bounded_while():
    async def check(server, echo):
        _, writer = await server.open()
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"GET /" + b"a" * 2**20)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    served(check, replace(QUICK, linger_bytes=2**22))


# --- ends ---


@pytest.mark.parametrize("path", ["/x", "/hold", "/chunks"])
def test_a_client_that_has_stopped_sending_gets_its_answer(path):
    async def check(server, echo):
        asking = asyncio.create_task(server.ask(get(path, close=False), eof=True))
        await eventually(lambda: len(echo.requests) == 1)
        await asyncio.sleep(0.6 if path == "/hold" else 0)
        echo.gate.set()
        assert [status for status in statuses(await asking) if status != 100] == [200]
        assert echo.left == 0

    served(check)


def test_a_client_that_has_stopped_sending_gets_all_its_answers():
    async def check(server, echo):
        assert statuses(await server.ask(get("/a", close=False) + get("/b", close=False), eof=True)) == [200, 200]

    served(check)


@pytest.mark.parametrize("path", ["/hold", "/stream"])
def test_a_client_that_has_left_is_noticed(path):
    async def check(server, echo):
        reader, writer = await server.open()
        writer.write(get(path))
        await eventually(lambda: len(echo.requests) == 1)
        if path == "/stream":
            await reader.readexactly(1000)
        writer.close()
        await eventually(lambda: echo.left == 1 and len(server.connections) == 0)

    served(check)


@pytest.mark.parametrize(
    "sent", [b"GET /x HTTP/1.1\r\n", b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\nabc"]
)
def test_half_a_request_and_no_more_is_a_client_that_left(sent):
    async def check(server, echo):
        assert await server.ask(sent, eof=True) == b""
        assert echo.requests == []

    served(check)


@pytest.mark.parametrize("in_chunks", [False, True])
def test_an_early_answer_is_seen_by_a_client_that_still_sends(in_chunks):
    """One that reads only once it has sent everything, as many do: 32 MB on a blocking socket."""
    part = b"a" * 2**20

    def client(port: int) -> bytes:
        length = b"Transfer-Encoding: chunked" if in_chunks else b"Content-Length: %d" % (32 * len(part))
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(b"POST /early HTTP/1.1\r\n" + HOST + length + b"\r\n\r\n")
            for _ in range(32):
                connection.sendall(b"%x\r\n%b\r\n" % (len(part), part) if in_chunks else part)
            return connection.recv(65536)

    async def check(server, echo):
        ((status, headers, _),) = answers(await asyncio.to_thread(client, server.port))
        assert status == 200 and headers["connection"] == "close"

    served(check)


def test_a_client_that_takes_nothing_is_cut_and_its_answer_ended():
    async def check(server, echo):
        before = len(server.connections)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(get("/stream"))
            await eventually(lambda: echo.left == 1)
            assert len(server.connections) == before
        assert server.refusals == ["client_stalled"]

    served(check, QUICK)


def test_small_answers_that_nobody_takes_are_noticed_by_what_the_system_still_holds():
    """64 KB would fill no buffer of ours."""

    async def app(scope, receive, send):
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": b"a" * 100, "more_body": True})
            await asyncio.sleep(0.0005)

    async def body():
        async with running(app, QUICK) as server:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                client.connect(("127.0.0.1", server.port))
                client.sendall(get())
                await eventually(lambda: server.refusals == ["client_stalled"])

    run(body)


@pytest.mark.parametrize("after", [b"", b"GET /more", b"a" * 100_000])
def test_a_whole_answer_that_nobody_takes_is_not_kept_behind_a_closed_connection(after):
    """It was written at once, and the connection closes after it: what is not taken still has a place in the books."""

    answered = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a" * 2**24})
        answered.append(scope["path"])

    async def body():
        async with running(app, QUICK) as server:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(("127.0.0.1", server.port))
                client.sendall(get() + after)
                await eventually(lambda: len(answered) == 1)
                assert len(server.connections) == 1
                await eventually(lambda: server.refusals == ["client_stalled"])
                assert len(server.connections) == 0

    run(body)


def test_who_lingers_has_the_time_to_take_its_answer():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a" * 2**23})

    async def body():
        async with running(app, replace(QUICK, linger_seconds=0.05)) as server:
            reader, writer = await server.open()
            writer.write(get() + b"GET /more")
            taken = 0
            while part := await reader.read(2**18):
                taken += len(part)
                await asyncio.sleep(0.01)
            assert taken > 2**23 and server.refusals == []
            writer.close()

    run(body)


def test_a_slow_reader_is_not_cut():
    async def check(server, echo):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.setblocking(False)
            client.sendall(get("/stream"))
            for _ in range(50):  # 1 s: three times the limit
                await asyncio.sleep(0.02)
                with contextlib.suppress(BlockingIOError):
                    client.recv(2**16)
            assert echo.left == 0

    served(check, QUICK)


@pytest.mark.parametrize("part", ["head", "body", "start"])
def test_what_an_application_does_wrong_is_a_500_or_a_cut(part, caplog):
    async def app(scope, receive, send):
        if part == "start":
            await send({"type": "http.response.body", "body": b""})
        value = b"a\r\nb" if part == "head" else b"5"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", value)]})
        await send({"type": "http.response.body", "body": b"123", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def body():
        async with running(app) as server:
            if part == "body":
                with contextlib.suppress(ConnectionError):
                    assert not (await server.ask(get())).endswith(b"}")
            else:
                assert statuses(await server.ask(get())) == [500]

    run(body)
    assert "failed" in caplog.text
