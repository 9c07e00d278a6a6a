"""Our reading of requests beside that of h11, an independent one: whatever ours takes, both read the same, byte for byte.

h11 takes more (lines that end with LF alone, folded lines, several equal lengths), so the other way round does not hold. It takes
less in one place: whitespace before a chunk's extension, which is legal.
"""

import asyncio
import contextlib
import random
from collections import Counter

import h11
import pytest

from server.errors import HeadTooLarge, MalformedRequest
from server.http.body import body_reader
from server.http.head import HeadReader
from tests.server.engines.harness import eventually
from tests.server.http import real_server

Read = list[tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]]  # method, target, headers, body

FIRST = [b"POST /a?b=c HTTP/1.1\r\n"] * 6 + [
    b"GET / HTTP/1.0\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET  / HTTP/1.1\r\n",
    b"GET / HTTP/1.1\n",
]
LENGTHS = [
    b"Content-Length: 7\r\n", b"content-length:0\r\n", b"Content-Length: 7\r\nContent-Length: 7\r\n", b"Content-Length: 7, 7\r\n",
    b"Content-Length: +7\r\n", b"Content-Length : 7\r\n", b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n", b"",
    *[b"Transfer-Encoding: chunked\r\n"] * 6, b"Transfer-Encoding: Chunked\r\n", b"Transfer-Encoding:\r\n chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n", b"Transfer-Encoding: xchunked\r\n", b"Transfer-Encoding\t: chunked\r\n",
]  # fmt: skip
OTHERS = [
    b"X: y\r\n",
    b"X:\r\n",
    b"X: \t y z \t\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"X: \xff\r\n",
    b"X: a\nY: b\r\n",
    b"X: a\r\n",
]
PARTS = [
    b"7\r\n1234567\r\n", b"1\r\n\n\r\n", b"2;a=b\r\n\r\n\r\n", b"03\r\n0\r\n\r\n", b"a\r\n0123456789\r\n", b"A;x\r\n0123456789\r\n",
    b"7\r\n12345678\r\n", b"1\na\n", b"1\r\na\n", b"1;\n\r\na\r\n", b"-1\r\n", b"0x1\r\na\r\n", b" 1\r\na\r\n",
]  # fmt: skip
LAST = [b"0\r\n\r\n"] * 4 + [
    b"000;e\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"0\r\nX: y\n\r\n",
    b"0\r\n\n",
    b"0\r\n Y: z\r\n\r\n",
    b"0\n\n",
]


def a_request(draw: random.Random) -> bytes:
    """One that may be wrong in any place, mostly in none or one."""
    length = draw.choice(LENGTHS)
    lines = [
        b"Host: here\r\n",
        length,
        *draw.choices(OTHERS[:4] if draw.random() < 0.8 else OTHERS, k=draw.randrange(3)),
    ]
    draw.shuffle(lines)
    body = b"".join(draw.choices(PARTS[:6] if draw.random() < 0.7 else PARTS, k=draw.randrange(4))) + draw.choice(LAST)
    return (
        draw.choice(FIRST)
        + b"".join(lines)
        + b"\r\n"
        + (body if b"hunked" in length else b"1234567"[: 7 * (b"7" in length)])
    )


def by_us(data: bytes, step: int) -> Read:
    """What we read before the first mistake."""
    found: Read = []
    buffer, head, body = bytearray(), None, b""
    reader, heads = body_reader(0), HeadReader()
    try:
        for start in range(0, len(data), step):
            buffer += data[start : start + step]
            while buffer:
                if head is None:
                    head = heads.take(buffer)
                    if head is None:
                        break
                    reader, body = body_reader(head.length), b""
                if not reader.done:
                    body += reader.take(buffer)
                if not reader.done:
                    break
                target = head.raw_path + (b"?" + head.query if head.query else b"")
                found.append((head.method.encode(), target, head.headers, body))
                head = None
    except (MalformedRequest, HeadTooLarge):
        pass
    return found


def by_h11(data: bytes) -> Read:
    """What h11 reads before the first mistake, each request by a connection of its own."""
    found: Read = []
    while data:
        connection = h11.Connection(h11.SERVER, 2**20)
        connection.receive_data(data)
        body, request = b"", None
        try:
            while not isinstance(event := connection.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    return found
                if isinstance(event, h11.Request):
                    request = event
                else:
                    assert isinstance(event, h11.Data)
                    body += bytes(event.data)
        except h11.RemoteProtocolError:
            return found
        assert request is not None
        found.append((request.method, request.target, list(request.headers), body))
        data = connection.trailing_data[0]
    return found


def lower(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in headers]


@pytest.mark.parametrize("seed", range(4))
def test_what_we_read_h11_reads_too(seed):
    draw = random.Random(seed)
    taken = refused = 0
    for _ in range(1000):
        data = b"".join(a_request(draw) for _ in range(draw.randrange(1, 4)))
        ours = by_us(data, draw.choice([1, 3, 10, 1000]))
        theirs = by_h11(data)[: len(ours)]
        assert [(method, target, lower(headers), body) for method, target, headers, body in ours] == theirs, data
        taken += len(ours)
        refused += not ours
    assert taken > 200 and refused > 200


@pytest.mark.processes
@pytest.mark.parametrize("seed", range(2))
def test_over_a_socket_the_same_requests_arrive_however_they_are_cut_and_ended(seed, caplog):
    draw = random.Random(seed)

    async def ask(server: real_server.Running, data: bytes) -> None:
        reader, writer = await server.open()
        end = draw.choice(["wait", "half close", "close", "reset"])
        with contextlib.suppress(ConnectionError):
            while data:
                size = draw.choice([1, 5, 50, 1000])
                writer.write(data[:size])
                data = data[size:]
                await asyncio.sleep(0)
            if end == "half close":
                writer.write_eof()
            if end in ("wait", "half close"):
                await reader.read()
        if end == "reset":
            writer.transport.abort()
        writer.close()

    async def check(server: real_server.Running, echo: real_server.Echo) -> None:
        for _ in range(40):
            data = [b"".join(a_request(draw) for _ in range(draw.randrange(1, 4))) for _ in range(5)]
            expected = [(method.decode(), body) for each in data for method, _, _, body in by_us(each, len(each))]
            echo.requests.clear()
            await asyncio.gather(*(ask(server, each) for each in data))
            await eventually(lambda: len(server.connections) == 0 and not server.web.server_state.tasks)
            assert Counter((method, body) for method, _, body in echo.requests) <= Counter(expected), data

    real_server.served(check, real_server.QUICK)
    assert caplog.text == ""
