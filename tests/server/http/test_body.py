"""Bodies: taken out of the bytes whatever the cuts, and nothing of what follows with them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import MalformedRequest
from server.http.body import MAX_CHUNK_LINE, MAX_EXCESS, body_reader
from tests.drawn import drawn


def read(length: int | None, data: bytes, step: int | None = None) -> tuple[bytes, bool, bytes]:
    """The body, whether it is complete, and what follows it."""
    reader, buffer, body = body_reader(length), bytearray(), b""
    for start in range(0, len(data), step or len(data)):
        buffer += data[start : start + (step or len(data))]
        if not reader.done:
            body += reader.take(buffer)
    return body, reader.done, bytes(buffer)


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@settings(max_examples=drawn(100))
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8), st.binary(max_size=20), st.integers(1, 60))
def test_a_body_is_what_was_sent_however_it_is_cut(parts, after, step):
    body = b"".join(parts)
    assert read(None, chunked(*parts) + after, step) == (body, True, after)
    assert read(len(body), body + after, step) == (body, True, after)


def test_no_body_takes_nothing():
    assert body_reader(0).done
    assert read(0, b"GET /") == (b"", True, b"GET /")


def test_half_a_body_is_not_done():
    assert read(10, b"12345") == (b"12345", False, b"")
    assert read(None, b"5\r\n123") == (b"123", False, b"")


@pytest.mark.parametrize(
    "data", [b"5;a=b\r\n12345\r\n0\r\n\r\n", b'5 ; a="x;y"\r\n12345\r\n0;z\r\n\r\n', b"005\r\n12345\r\n000\r\n\r\n"]
)
def test_extensions_are_ignored(data):
    assert read(None, data) == (b"12345", True, b"")


def test_trailers_are_dropped():
    assert read(None, b"1\r\na\r\n0\r\nX: y\r\nZ:\r\n\r\nrest") == (b"a", True, b"rest")


@pytest.mark.parametrize("step", [None, 1])
@pytest.mark.parametrize(
    "data",
    [
        b"5\n12345\n0\n\n", b"5\r\n12345\n0\r\n\r\n", b"5\r\n123456\r\n0\r\n\r\n", b"x\r\n", b"-5\r\n12345\r\n", b"+5\r\n12345\r\n",
        b"0x5\r\n12345\r\n", b"5_0\r\n", b"\r\n", b" 5\r\n12345\r\n", b"5;a\rb\r\n12345\r\n0\r\n\r\n", b"5;\x00\r\n12345\r\n",
        b"5\r\n12345\r\n0\r\nGET / HTTP/1.1\r\n\r\n", b"5\r\n12345\r\n0\r\n X: y\r\n\r\n", b"5\r\n12345\r\n0\r\nX: y\n\r\n",
        b"f" * 16 + b"\r\n", b"5;" + b"a" * 300 + b"\r\n", b"5\r\n12345\r\n0\r\nX: " + b"y" * 9000 + b"\r\n\r\n",
        b"5\r\n12345\r\n0\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 400 + b"\r\n",
        b"5\r\n12345\r0\r\n\r\n", b"5\r\r\n12345\r\n",
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(data, step):
    with pytest.raises(MalformedRequest):
        read(None, data, step)


def test_a_line_without_end_is_refused_and_not_kept():
    with pytest.raises(MalformedRequest):
        read(None, b"5;" + b"a" * 300)


@pytest.mark.parametrize("step", [65536, 5])
def test_chunks_of_one_byte_are_read_at_a_cost_that_is_linear(step):
    """Each byte of the buffer is looked at once or twice, and moved never: what is taken out of it is taken once a read."""
    deleted = 0

    class Watched(bytearray):
        def __delitem__(self, where):
            nonlocal deleted
            deleted += 1
            super().__delitem__(where)

    data = chunked(*[b"a"] * 20_000)
    reader, buffer, body = body_reader(None), Watched(), bytearray()
    for start in range(0, len(data), step):
        buffer += data[start : start + step]
        body += reader.take(buffer)
        assert len(buffer) < 8
    assert reader.done and body == b"a" * 20_000
    assert deleted == -(-len(data) // step)


def test_lines_around_chunks_may_be_long_only_where_there_is_data():
    extension = b";" + b"a" * (MAX_CHUNK_LINE - 8)
    few = MAX_EXCESS // MAX_CHUNK_LINE
    assert read(None, (b"1" + extension + b"\r\na\r\n") * few + b"0\r\n\r\n")[:2] == (b"a" * few, True)
    with pytest.raises(MalformedRequest, match="extensions"):
        read(None, (b"1" + extension + b"\r\na\r\n") * 2 * few)
    large = b"80" + extension + b"\r\n" + b"a" * 128 + b"\r\n"
    assert read(None, large * 200 + b"0\r\n\r\n")[:2] == (b"a" * 128 * 200, True)
