"""Heads: what is read out of them, what is refused, and that neither depends on how the bytes are cut."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import HeadTooLarge, MalformedRequest
from server.http.head import MAX_HEAD_BYTES, MAX_HEADERS, MAX_LINE_BYTES, HeadReader, RequestHead
from tests.drawn import drawn

HOST = b"Host: here\r\n"


def read(data: bytes, step: int | None = None) -> tuple[RequestHead | None, bytes]:
    """The head, and what is left behind it; fed `step` bytes at a time."""
    reader, buffer = HeadReader(), bytearray()
    for start in range(0, len(data), step or len(data)):
        buffer += data[start : start + (step or len(data))]
        head = reader.take(buffer)
        if head is not None:
            return head, bytes(buffer) + data[start + (step or len(data)) :]
    return None, bytes(buffer)


def head_of(*lines: bytes, first: bytes = b"POST /v1/x?a=b HTTP/1.1", host: bytes = HOST) -> RequestHead:
    head, left = read(first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    assert head is not None and left == b""
    return head


@pytest.mark.parametrize("step", [None, 1, 2, 3, 7])
def test_a_head_is_read_and_what_follows_is_left(step):
    data = b"\r\n\r\nPOST /v1/a%20b?q=%20 HTTP/1.1\r\nHost: here:80\r\nX-Any:\t some value \t\r\nContent-Length: 12\r\n\r\nbody"
    head, left = read(data, step)
    assert head is not None and left == b"body"
    assert (head.method, head.version, head.path, head.raw_path) == ("POST", "1.1", "/v1/a b", b"/v1/a%20b")
    assert (head.query, head.length, head.keep_alive, head.expects_continue) == (b"q=%20", 12, True, False)
    assert head.headers == [(b"host", b"here:80"), (b"x-any", b"some value"), (b"content-length", b"12")]


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        ([], 0), ([b"Content-Length: 0"], 0), ([b"CONTENT-LENGTH:7"], 7), ([b"Transfer-Encoding: chunked"], None),
        ([b"transfer-encoding:Chunked"], None), ([b"Content-Length: 007"], 7),
    ],
)  # fmt: skip
def test_how_long_the_body_is(lines, length):
    assert head_of(*lines).length == length


@pytest.mark.parametrize(
    ("first", "line", "keep_alive"),
    [
        (b"GET / HTTP/1.1", b"X: y", True), (b"GET / HTTP/1.1", b"Connection: Close", False),
        (b"GET / HTTP/1.1", b"Connection: keep-alive, close", False), (b"GET / HTTP/1.0", b"X: y", False),
        (b"GET / HTTP/1.0", b"Connection: keep-alive", False), (b"GET / HTTP/1.1", b"Connection: closed", True),
    ],
)  # fmt: skip
def test_whether_the_connection_goes_on(first, line, keep_alive):
    assert head_of(line, first=first).keep_alive is keep_alive


def test_a_later_version_of_http_1_is_1_1():
    assert head_of(first=b"GET / HTTP/1.7").version == "1.1"


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        (b"/a", "/a", b"", b"here"), (b"/a?b?c", "/a", b"b?c", b"here"), (b"/a#f?x", "/a", b"", b"here"),
        (b"//a", "//a", b"", b"here"), (b"http://other:8/a?b", "/a", b"b", b"other:8"), (b"HTTPS://o", "/", b"", b"o"),
        (b"http://o?q", "/", b"q", b"o"),
    ],
)  # fmt: skip
def test_targets(target, path, query, host):
    head = head_of(first=b"GET " + target + b" HTTP/1.1")
    assert (head.path, head.query, dict(head.headers)[b"host"]) == (path, query, host)


SMUGGLING = {
    "both lengths": [b"Content-Length: 5", b"Transfer-Encoding: chunked"],
    "both lengths, the other way round": [b"Transfer-Encoding: chunked", b"Content-Length: 5"],
    "two lengths": [b"Content-Length: 5", b"Content-Length: 6"],
    "one length twice": [b"Content-Length: 5", b"Content-Length: 5"],
    "a list of lengths": [b"Content-Length: 5, 5"],
    "a signed length": [b"Content-Length: +5"],
    "a negative length": [b"Content-Length: -5"],
    "a hexadecimal length": [b"Content-Length: 0x5"],
    "a length with an underscore": [b"Content-Length: 1_0"],
    "a length in other digits": ["Content-Length: ٥".encode()],
    "no length": [b"Content-Length:"],
    "an endless length": [b"Content-Length: " + b"9" * 40],
    "an unknown encoding": [b"Transfer-Encoding: xchunked"],
    "an encoding before chunks": [b"Transfer-Encoding: gzip, chunked"],
    "chunks twice": [b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"],
    "chunks, then none": [b"Transfer-Encoding: chunked, identity"],
    "a vertical tab in the encoding": [b"Transfer-Encoding: \x0bchunked"],
    "whitespace before the colon": [b"Content-Length : 5"],
    "a tab before the colon": [b"Transfer-Encoding\t: chunked"],
    "whitespace before the name": [b" Content-Length: 5"],
    "a folded line": [b"X: a", b" Content-Length: 5"],
    "a folded line by a tab": [b"Transfer-Encoding:", b"\tchunked"],
    "no colon": [b"Content-Length 5"],
    "no name": [b": 5"],
    "a NUL": [b"X: a\0b"],
    "a bare CR": [b"X: a\rContent-Length: 5"],
    "a bare LF": [b"X: a\nContent-Length: 5"],
    "a name with a bracket": [b"Content(Length): 5"],
    "a second host": [b"Host: there"],
}


@pytest.mark.parametrize("lines", SMUGGLING.values(), ids=SMUGGLING)
@pytest.mark.parametrize("step", [None, 1])
def test_what_two_readers_could_read_in_two_ways_is_refused(lines, step):
    with pytest.raises(MalformedRequest):
        read(b"POST / HTTP/1.1\r\n" + HOST + b"\r\n".join(lines) + b"\r\n\r\n", step)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\n" + HOST + b"\r\n", b"GET / HTTP/1.1\r\nHost: here\n\n", b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /\r\n" + HOST + b"\r\n", b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / x HTTP/1.1\r\n" + HOST + b"\r\n", b"GET / http/1.1\r\n" + HOST + b"\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", b"GET x HTTP/1.1\r\n" + HOST + b"\r\n",
        "GET /é HTTP/1.1\r\nHost: here\r\n\r\n".encode(), b"G@T / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", b"\xef\xbb\xbfGET / HTTP/1.1\r\n",
        b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n", b" GET / HTTP/1.1\r\n", b"{}\r\n\r\n",
        b"* * HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(data):
    with pytest.raises(MalformedRequest):
        read(data)


def test_http_1_0_needs_no_host():
    assert head_of(first=b"GET / HTTP/1.0", host=b"").headers == []


@pytest.mark.parametrize("step", [None, 1000])
@pytest.mark.parametrize(
    "rest",
    [
        b"X: " + b"a" * MAX_HEAD_BYTES, b"X: " + b"a" * (MAX_LINE_BYTES + 1), b"a: b\r\n" * (MAX_HEADERS + 1),
        b"A" * (MAX_HEAD_BYTES + 1),
    ],
)  # fmt: skip
def test_what_is_too_large_is_refused(rest, step):
    with pytest.raises(HeadTooLarge):
        read(b"GET / HTTP/1.1\r\n" + HOST + rest + b"\r\n\r\n", step)


def test_as_much_as_is_allowed_is_read():
    lines = [b"X%d: " % i + b"a" * 400 for i in range(MAX_HEADERS - 1)]
    assert len(head_of(*lines).headers) == MAX_HEADERS
    assert len(head_of(b"X: " + b"a" * (MAX_LINE_BYTES - 3)).headers) == 2


def test_a_head_without_end_is_refused_as_soon_as_it_is_too_long():
    reader, buffer = HeadReader(), bytearray(b"GET / HTTP/1.1\r\nX: ")
    with pytest.raises(HeadTooLarge):
        for _ in range(100):
            buffer += b"a" * 1024
            reader.take(buffer)
    assert len(buffer) <= MAX_HEAD_BYTES + 1024


def test_the_cost_is_linear_however_the_bytes_come():
    """Byte by byte, 60 KB: a reader that began anew each time would look at 2 GB."""
    looked_at = 0

    class Watched(bytearray):
        def find(self, wanted, start=0):
            nonlocal looked_at
            looked_at += len(self) - start
            return super().find(wanted, start)

    data = b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%03d: %b\r\n" % (i, b"a" * 600) for i in range(100)) + b"\r\n"
    reader, buffer = HeadReader(), Watched()
    for i in range(len(data)):
        buffer += data[i : i + 1]
        assert (reader.take(buffer) is None) == (i < len(data) - 1)
    assert 0 < looked_at <= 5 * len(data)


@settings(max_examples=drawn(150))
@given(st.binary(max_size=200), st.integers(1, 40))
def test_any_bytes_are_read_refused_or_waited_for_however_they_are_cut(noise, step):
    def outcome(step):
        try:
            return read(b"GET / HTTP/1.1\r\n" + HOST + noise + b"\r\n\r\n", step)[0]
        except (MalformedRequest, HeadTooLarge) as error:
            return type(error)

    assert outcome(step) == outcome(None)
