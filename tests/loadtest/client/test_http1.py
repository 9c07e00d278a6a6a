"""A connection's bytes become an exchange, wherever the network cut them; whatever goes wrong ends it once, with a reason."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.http1 import Connection, ConnectionPool, HttpExchange
from loadtest.report.records import ErrorClass

OK = b"HTTP/1.1 200 OK\r\n"


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written, self.closed, self.aborted = b"", False, False

    def write(self, data):
        self.written += data

    def close(self):
        self.closed = True

    def abort(self):
        self.aborted = True


def opened():
    """A pool, a connection of it with an exchange under way, its wire, and how often the exchange has ended."""
    pool, ended = ConnectionPool("http://127.0.0.1:1"), []
    connection, wire, exchange = Connection(pool), Wire(), HttpExchange(b"GET", 0.5, ended.append)
    connection.connection_made(wire)
    connection.carry(exchange)
    return pool, connection, wire, exchange, ended


def framed(parts, how):
    if how == "length":
        return OK + b"Content-Length: %d\r\n\r\n" % sum(map(len, parts)) + b"".join(parts)
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=20), max_size=4), st.sampled_from(["length", "chunked"]), st.data())
def test_an_answer_is_the_same_wherever_it_is_cut(parts, how, data):
    whole = framed(parts, how)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    _, connection, wire, exchange, ended = opened()
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        if end > start:
            connection.data_received(whole[start:end])
    assert (exchange.status, exchange.error, bytes(exchange.body)) == (200, None, b"".join(parts))
    assert ended == [exchange] and wire.written == b"GET" and exchange.payload == b""
    assert list(exchange.chunk_times) == sorted(exchange.chunk_times)
    assert list(exchange.chunk_ends) == sorted(exchange.chunk_ends)
    assert not exchange.body or exchange.chunk_ends[-1] == len(exchange.body)
    connection.carry(HttpExchange(b"next", 1.0, ended.append))  # it can be used again
    assert wire.written == b"GETnext" and not wire.closed


@pytest.mark.parametrize("interim", [b"100 Continue", b"103 Early Hints\r\nLink: <x>", b"102 Processing"])
def test_an_interim_answer_is_not_the_answer(interim):
    _, connection, _, exchange, ended = opened()
    connection.data_received(b"HTTP/1.1 " + interim + b"\r\n\r\n")
    assert (exchange.status, exchange.headers, ended) == (None, None, [])
    connection.data_received(framed([b"abc"], "length"))
    assert (exchange.status, bytes(exchange.body), ended) == (200, b"abc", [exchange])


@pytest.mark.parametrize(
    ("received", "error", "detail"),
    [
        (b"", ErrorClass.STREAM, "without an answer"),
        (OK[:5], ErrorClass.STREAM, "without an answer"),
        (OK + b"Content-Length: 5\r\n\r\nabc", ErrorClass.STREAM, "inside the answer"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", ErrorClass.STREAM, "inside the answer"),
        (OK + b"\r\nabc", None, None),  # neither length nor chunks: the end of the connection is the end of the body
    ],
)
def test_a_connection_that_closes_ends_its_exchange(received, error, detail):
    _, connection, _, exchange, ended = opened()
    if received:
        connection.data_received(received)
    connection.connection_lost(None)
    assert (exchange.error, ended) == (error, [exchange])
    assert detail is None or detail in exchange.detail


def test_an_error_of_the_connection_is_told_even_if_the_body_has_no_frame():
    _, connection, _, exchange, _ = opened()
    connection.data_received(OK + b"\r\nabc")
    connection.connection_lost(ConnectionResetError("reset"))
    assert exchange.error is ErrorClass.STREAM and "reset" in exchange.detail


@given(st.binary(min_size=1, max_size=40))
def test_any_bytes_end_the_exchange_once(data):
    _, connection, wire, exchange, ended = opened()
    connection.data_received(data)
    assert exchange.error is None or wire.aborted
    connection.connection_lost(None)
    assert ended == [exchange] and exchange.error is ErrorClass.STREAM


def test_a_server_that_closes_is_not_used_again():
    _, connection, wire, exchange, ended = opened()
    connection.data_received(OK + b"Connection: close\r\nContent-Length: 1\r\n\r\nx")
    assert wire.closed and ended == [exchange] and exchange.error is None
    connection.connection_lost(None)
    assert ended == [exchange]


def test_only_the_first_end_counts_and_what_comes_later_is_dropped():
    _, connection, wire, exchange, ended = opened()
    exchange.end(3.0, ErrorClass.TIMEOUT, "late")
    connection.drop()
    connection.data_received(framed([b"abc"], "length"))
    exchange.end(4.0)
    assert (exchange.finished, exchange.error, bytes(exchange.body), ended) == (
        3.0,
        ErrorClass.TIMEOUT,
        b"",
        [exchange],
    )
    assert wire.aborted


def test_when_a_server_was_last_heard():
    exchange = HttpExchange(b"", 1.0, lambda ended: None)
    heard = [exchange.last_heard]
    exchange.headers = 2.0
    heard.append(exchange.last_heard)
    exchange.chunk_times.append(3.0)
    assert [*heard, exchange.last_heard] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "", "http://", "http://h:x", "http://h:99999"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match=r"address|[Pp]ort"):
        ConnectionPool(url)


def test_no_connection_is_an_end_with_a_reason():
    async def send():
        pool, over = ConnectionPool("http://127.0.0.1:9", connect_timeout=5), asyncio.Event()
        exchange = HttpExchange(b"GET", 0.0, lambda ended: over.set())
        pool.send(exchange)
        await over.wait()
        await pool.close()
        return exchange

    exchange = asyncio.run(send())
    assert exchange.error is ErrorClass.CONNECT and exchange.detail and exchange.connected is None
