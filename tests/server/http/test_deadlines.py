"""What takes too long and what comes too often: deadlines of heads, bodies and idle connections, and how many there may be."""

import asyncio
import contextlib
import logging
import socket
from dataclasses import replace

import pytest

from server.http.connections import Connections
from server.http.limits import HttpLimits
from server.http.write_watch import WriteWatch
from tests.server.engines.harness import eventually, run
from tests.server.http.real_server import HOST, QUICK, answers, get, served, statuses

pytestmark = pytest.mark.processes

# --- deadlines ---


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"", []), (b"GET", [408]), (b"GET /x HTTP/1.1\r\nHost: he", [408]), (b"\r\n", []),
        (b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\n", [408]),
        (b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 10\r\n\r\nhalf", [408]),
        (b"POST /x HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha", [408]),
        (b"GET /x HTTP/1.1\r\nHost: here\r\n\r\n", [200]), (b"GET /x HTTP/1.1\r\nHost: here\r\n\r\nGET", [200, 408]),
    ],
)  # fmt: skip
def test_what_does_not_come_in_time_ends_the_connection(sent, expected):
    async def check(server, echo):
        assert statuses(await server.ask(sent)) == expected
        await eventually(lambda: len(server.connections) == 0)
        assert server.refusals == ["request_timeout"] * (408 in expected)

    served(check, QUICK)


@pytest.mark.parametrize(
    ("start", "drip", "status"),
    [
        (b"GET /x HTTP/1.1\r\n", b"a", 408), (b"", b"\r\n", 400),
        (b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 999\r\n\r\n", b"a", 408),
    ],
)  # fmt: skip
def test_a_client_that_drips_ends_too(start, drip, status):
    """Each byte in time is not in time: the clock is the request's, not the byte's. Blank lines before it are counted."""

    async def check(server, echo):
        reader, writer = await server.open()
        writer.write(start)
        answer = asyncio.create_task(reader.read())
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                writer.write(drip)
                await writer.drain()
            await asyncio.sleep(0.02)
        assert statuses(answer.result()) == [status]
        writer.close()

    served(check, QUICK)


def test_a_body_that_keeps_the_pace_has_all_the_time_it_needs():
    async def check(server, echo):
        reader, writer = await server.open()
        writer.write(b"POST /x HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 40000\r\n\r\n")
        for _ in range(40):  # 0.8 s in all, and more a second than `body_rate`
            writer.write(b"a" * 1000)
            await asyncio.sleep(0.02)
        assert statuses(await reader.read()) == [200]
        writer.close()

    served(check, replace(QUICK, body_rate=10_000))


def test_what_was_sent_fast_earns_no_time_for_saying_nothing():
    """60,000 bytes at a byte a second would be most of a day."""

    async def check(server, echo):
        data = b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 70000\r\n\r\n" + b"a" * 60_000
        assert statuses(await server.ask(data)) == [408]

    served(check, replace(QUICK, body_rate=1))


def test_waiting_for_an_answer_is_no_idleness():
    async def check(server, echo):
        asking = asyncio.create_task(server.ask(get("/hold")))
        await asyncio.sleep(1)
        echo.gate.set()
        assert statuses(await asking) == [200]

    served(check, QUICK)


# --- how many ---


def test_clients_that_say_nothing_shut_nobody_out(caplog):
    async def check(server, echo):
        silent = [await server.open() for _ in range(12)]
        assert statuses(await server.ask(get())) == [200]
        assert len(server.connections) <= 4
        for _, writer in silent:
            writer.close()

    served(check, HttpLimits(connections=8))
    lines = [record.getMessage() for record in caplog.records if record.name == "headrace.http"]
    assert lines[0] == "127.0.0.1 has 4 connections open, which is the limit of one address"
    assert len(lines) <= 4  # one a change, not one a connection


def test_where_all_wait_for_answers_a_new_client_is_told_so(caplog):
    async def check(server, echo):
        asking = [asyncio.create_task(server.ask(get("/hold"))) for _ in range(2)]
        await eventually(lambda: len(echo.requests) == 2)
        ((status, headers, body),) = answers(await server.ask(b""))
        assert status == 503 and "retry-after" in headers and b"too_many_connections" in body
        echo.gate.set()
        assert [statuses(answer) for answer in await asyncio.gather(*asking)] == [[200], [200]]
        assert statuses(await server.ask(get())) == [200]

    served(check, HttpLimits(connections=4))


def test_a_client_that_is_refused_or_gives_way_sees_why_even_if_it_sends_all_before_it_reads():
    """Three of them, of which two are listened to: the longest is cut then."""
    request = b"POST /x HTTP/1.1\r\n" + HOST + b"Content-Length: 2000000\r\n\r\n"

    async def check(server, echo):
        asking = [asyncio.create_task(server.ask(get("/hold")))]
        await eventually(lambda: len(echo.requests) == 1)
        half = [await server.open() for _ in range(1)]
        half[0][1].write(request + b"a" * 1000)
        await eventually(lambda: len(server.connections) == 2)
        asking.append(asyncio.create_task(server.ask(get("/hold"))))  # half a body gives way to it
        await eventually(lambda: len(echo.requests) == 2)
        half.append(await server.open())  # and this one finds no place
        half[1][1].write(request)
        for reader, writer in half:
            for _ in range(20):
                writer.write(b"a" * 50_000)
                await writer.drain()
                await asyncio.sleep(0)
            ((status, headers, _),) = answers(await reader.read())
            assert status == 503 and headers["connection"] == "close" and headers["retry-after"]
        half.append(await server.open())
        await eventually(lambda: server.refusals == ["too_many_connections"] * 3)
        echo.gate.set()
        assert [statuses(answer) for answer in await asyncio.gather(*asking)] == [[200], [200]]
        for _, writer in half:
            writer.close()

    served(check, HttpLimits(connections=4, parting=2))


class Book:
    """A connection, as far as the books know it."""

    def __init__(self, address: str, books: Connections) -> None:
        self.address, self.books, self.gone, self.is_cut = address, books, False, False

    def give_way(self, error) -> None:
        self.gone = True
        self.books.part(self)

    def check(self, now) -> None:
        pass

    def end_receiving(self, error) -> None:
        pass

    def cut(self) -> None:
        self.gone = self.is_cut = True
        self.books.remove(self)


def test_who_has_waited_longest_gives_way_and_who_waits_for_an_answer_never(caplog):
    async def body():
        books = Connections(HttpLimits(connections=4, tick_seconds=0.01))
        first, second, third, fourth = (Book(address, books) for address in "aabb")
        assert [books.admit(each) for each in (first, second, third, fourth)] == [None] * 4
        books.works(first)
        fifth, last = Book("c", books), Book("d", books)
        assert books.admit(fifth) is None  # all are too many; the second has waited longest
        assert [each.gone for each in (first, second, third, fourth)] == [False, True, False, False]
        assert books.admit(Book("b", books)) is None  # too many of b: one of b goes
        assert third.gone and not fourth.gone
        books.works(fifth)
        books.works(fourth)
        books.admit(last)
        books.works(last)
        assert len(books) == 4 and books.admit(Book("e", books)) is not None
        for each in (first, fourth, fifth, last):
            books.remove(each)
            books.remove(each)
        assert len(books) == 0
        books.cut()
        await eventually(lambda: sum("again" in line for line in caplog.messages) == 2)

    with caplog.at_level(logging.WARNING):
        run(body)
    assert sum("which is the limit" in line for line in caplog.messages) == 2


def test_a_broken_connection_does_not_stop_the_clock_of_others(caplog):
    class Broken(Book):
        def check(self, now):
            raise RuntimeError("broken")

    async def body():
        books = Connections(replace(QUICK, tick_seconds=0.001))
        broken = Broken("a", books)
        books.admit(broken)
        await eventually(lambda: broken.gone)
        books.remove(broken)
        await asyncio.sleep(0.01)

    run(body)
    assert "is broken" in caplog.text


def test_of_those_that_part_the_longest_is_cut():
    async def body():
        books = Connections(HttpLimits(connections=2, parting=2, tick_seconds=0.01))
        first, *others = (Book(address, books) for address in "abcd")
        for each in (first, *others):
            books.admit(each)
        books.part(others[-1])
        assert len(books) == 1
        assert [each.is_cut for each in (first, *others)] == [True, False, False, False]
        books.cut()
        assert all(each.is_cut for each in others) and len(books) == 0

    run(body)


def test_what_a_client_has_taken_is_known_from_what_is_left():
    here, there = socket.socketpair()
    with here, there:
        left = 0

        class Transport:
            def get_write_buffer_size(self):
                return left

            def get_extra_info(self, name):
                return here

        watch = WriteWatch(Transport(), 10.0)
        assert watch.stalled_seconds(20.0) == 0 and watch.all_taken
        watch.written, left = 100, 100
        assert watch.stalled_seconds(25.0) == 5 and not watch.all_taken
        left = 60
        assert watch.stalled_seconds(30.0) == 0 and not watch.all_taken
        assert watch.stalled_seconds(37.0) == 7
        left = 0
        assert watch.stalled_seconds(38.0) == 0 and watch.all_taken
        assert watch.stalled_seconds(99.0) == 0
