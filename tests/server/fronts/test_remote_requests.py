"""A request whose connection is in one process and whose application in another: bodies, pauses, early ends, deaths."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.errors import Unavailable
from server.fronts.messages import ClientRefused, FrontBeat, FrontReady
from server.http.cycle import HIGH_WATER
from tests.drawn import drawn
from tests.server.fronts.rig import START, Application, FrontRig


@pytest.fixture
def rig(monkeypatch):
    """Runs a test's body on a rig."""

    def run(body, app, **options):
        async def rigged():
            rig = FrontRig(monkeypatch, app, **options)
            try:
                await body(rig)
            finally:
                await rig.close()

        asyncio.run(rigged())

    return run


def ended(rig):
    assert rig.open == ([], []) and not rig.state.tasks
    return True


@given(
    parts=st.lists(st.integers(1, 100_000), max_size=8),
    size=st.sampled_from([900, 30_000, 2**20]),
    idle=st.integers(0, 3),
)
@settings(max_examples=drawn(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_body_in_parts_arrives_whole_and_no_side_waits_for_ever(rig, parts, size, idle):
    app = Application(idle=idle)
    contents = [bytes([index + 1]) * length for index, length in enumerate(parts)]

    async def body(rig):
        cycle, client = rig.begin()
        for content in contents:
            resumed = client.resumed
            if cycle.feed(content):
                await rig.settle()
                assert client.resumed > resumed, "whoever was told to wait is told to go on"
        cycle.end_body()
        await rig.settle()
        assert app.bodies == [b"".join(contents)]
        assert client.answers == 1 and client.written.endswith(b"4\r\ndone\r\n0\r\n\r\n") and cycle.keep_alive
        assert ended(rig)

    rig(body, app, size=size)


def test_of_a_body_that_nobody_reads_no_more_than_the_mark_and_a_part_is_let_through(rig):
    async def app(scope, receive, send):
        await asyncio.Event().wait()

    async def body(rig):
        cycle, client = rig.begin()
        fed = 0
        while not cycle.feed(bytes(10_000)):
            fed += 10_000
            await rig.settle()
            assert fed <= HIGH_WATER
        await rig.settle()
        assert not client.resumed

    rig(body, app)


@pytest.mark.parametrize("when", ["head", "body"])
def test_a_client_that_leaves_early_is_gone_for_the_application(rig, when):
    app = Application()

    async def body(rig):
        cycle, client = rig.begin()
        if when == "body":
            cycle.feed(b"some")
            await rig.settle()
        cycle.disconnect()
        assert cycle.feed(b"more") is False
        cycle.end_body()
        cycle.disconnect()
        await rig.settle()
        assert app.left == 1 and not app.bodies and not client.written
        assert ended(rig)

    rig(body, app)


def test_an_answer_that_crosses_the_clients_leaving_is_written_to_nobody(rig):
    app = Application()

    async def body(rig):
        cycle, client = rig.begin()
        cycle.end_body()
        rig.from_process.deliver(rig.front._link, 2**20)
        for _ in range(5):  # it answers, and nobody has told it yet
            await asyncio.sleep(0)
            rig.from_process.deliver(rig.front._link, 2**20)
        assert app.bodies and rig.from_server.bytes
        cycle.disconnect()
        await rig.settle()
        assert not client.written and not client.answers
        assert ended(rig)

    rig(body, app)


def test_one_client_that_takes_nothing_holds_back_its_own_answer_only(rig):
    app = Application(answer=[b"x"] * 5, idle=4)

    async def body(rig):
        (slow, its), (quick, other) = rig.begin(), rig.begin()
        its.pause()
        for cycle in (slow, quick):
            cycle.end_body()
        await rig.settle()
        assert other.answers == 1 and its.answers == 0
        app_wire = rig.front._wires[slow.number]
        assert app_wire.write_paused
        its.take()
        await rig.settle()
        assert its.answers == 1 and its.written == other.written and not app_wire.write_paused
        assert ended(rig)

    rig(body, app)


def test_a_client_that_leaves_while_it_takes_nothing_frees_the_application(rig):
    app = Application(answer=[b"x"] * 3)

    async def body(rig):
        cycle, _ = rig.begin()
        cycle.end_body()
        rig.front._link.pause_writing()
        await rig.settle()
        assert app.sent == 0 and rig.state.tasks, "it waits for room"
        cycle.disconnect()
        await rig.settle()
        assert ended(rig)

    rig(body, app)


def test_a_process_that_does_not_keep_up_holds_back_those_requests_too_that_begin_meanwhile(rig):
    app = Application(answer=[b"x"] * 3)

    async def body(rig):
        (before, one) = rig.begin()
        await rig.settle()
        rig.front._link.pause_writing()
        (late, two) = rig.begin()
        before.end_body()
        late.end_body()
        await rig.settle()
        assert len(app.bodies) == 2 and app.sent == 0
        rig.front._link.resume_writing()
        await rig.settle()
        assert one.answers == two.answers == 1 and one.written == two.written
        assert ended(rig)

    rig(body, app)


def test_room_on_the_wire_does_not_wake_an_answer_whose_client_takes_nothing(rig):
    app = Application()
    app.reads = False

    async def body(rig):
        cycle, _ = rig.begin()
        await rig.settle()
        wire = rig.front._wires[cycle.number]
        wire.client_takes(False)
        rig.front._link.pause_writing()
        rig.front._link.resume_writing()
        assert wire.write_paused
        wire.client_takes(True)
        assert not wire.write_paused

    rig(body, app)


def test_frames_are_written_as_the_application_would_have_written_them(rig):
    app = Application(answer=[b"first"])
    app.reads = False

    async def body(rig):
        (first, one), (second, two) = rig.begin(), rig.begin()
        await rig.settle()
        assert all(direct.takes_more() for direct in app.direct)
        fills = [direct.framed(b"data: ", b"\n\n") for direct in app.direct]
        one.written.clear()
        two.written.clear()
        for fill in fills:
            fill(b"token")
        fills[0](b"!")
        await rig.settle()
        assert (
            one.written == b"d\r\ndata: token\n\n\r\n9\r\ndata: !\n\n\r\n"
            and two.written == b"d\r\ndata: token\n\n\r\n"
        )
        second.disconnect()
        for fill in fills:
            fill(b"more")
        await rig.settle()
        assert one.written.endswith(b"data: more\n\n\r\n") and b"more" not in two.written
        assert rig.open == ([first.number], [first.number]) and app.left == 1

    rig(body, app)


@pytest.mark.parametrize("at", ["body", "answer", "pause"])
def test_when_an_http_process_dies_its_clients_have_left(rig, at):
    app = Application(answer=[b"x"])
    app.reads = at == "body"

    async def body(rig):
        rig.process._link.send(FrontReady())
        if at == "pause":
            rig.front._link.pause_writing()
        cycle, _ = rig.begin()
        cycle.feed(b"half of it")
        await rig.settle()
        assert rig.front.ready and len(rig.state.tasks) == 1
        rig.front._link.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)
        assert not rig.front.ready and not rig.front._wires and not rig.state.tasks
        assert app.left == 1

    rig(body, app)


def test_half_a_message_of_a_process_that_dies_is_no_message(rig):
    app = Application()

    async def body(rig):
        cycle, _ = rig.begin()
        await rig.settle()
        cycle.feed(b"all of it")
        cycle.end_body()
        await asyncio.sleep(0)
        rig.from_process.deliver(rig.front._link, len(rig.from_process.bytes) - 1)
        rig.front._link.connection_lost(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert app.left == 1 and not app.bodies

    rig(body, app)


@pytest.mark.parametrize("method", ["POST", "HEAD"])
def test_a_request_that_is_refused_here_has_left_there(rig, method):
    app = Application()

    async def body(rig):
        cycle, client = rig.begin(method=method)
        cycle.feed(b"some")
        await rig.settle()
        cycle.answer_error(Unavailable("It ends."))
        assert client.answers == 1 and not cycle.keep_alive and cycle.started
        head, _, content = bytes(client.written).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ") and b"connection: close" in head.lower() and b"date: today" in head
        assert content == b"" if method == "HEAD" else json.loads(content)["error"]["message"] == "It ends."
        await rig.settle()
        assert app.left == 1 and ended(rig)

    rig(body, app)


def test_an_answer_before_the_body_is_over_ends_the_connection(rig):
    async def app(scope, receive, send):
        await send(START)
        await send({"type": "http.response.body", "body": b"enough"})

    async def body(rig):
        cycle, client = rig.begin()
        cycle.feed(b"some")
        await rig.settle()
        assert client.answers == 1 and not cycle.keep_alive and b"connection: close" in client.written
        cycle.feed(b"more")
        cycle.end_body()
        await rig.settle()
        assert ended(rig) and not rig.from_process.bytes

    rig(body, app)


def test_the_server_counts_connections_that_are_on_their_way(rig):
    async def body(rig):
        front = rig.front
        for _ in range(3):
            assert front.give(rig.sockets[1])
        assert front.load == 3
        rig.process._link.send(FrontBeat(2, 1, 0.5))  # it has taken two, of which one has ended
        rig.process._link.send(ClientRefused("head_too_large"))
        front.silence = 3.5
        assert front.silent
        await rig.settle()
        assert front.load == 2 and not front.silent and rig.refusals == ["head_too_large"]
        rig.sockets[3].close()
        assert not front.give(rig.sockets[1]) and front.load == 2

    rig(body, Application())
