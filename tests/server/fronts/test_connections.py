"""A real HTTP process in front of an application in the test's own event loop: connections are there what they are anywhere."""

import asyncio
import contextlib
import json
import os
import signal
import ssl
from dataclasses import dataclass

import pytest

from configs.settings import Settings
from server.errors import Unavailable
from server.fronts.http_processes import HttpProcesses
from server.http.door import web_config
from server.listen import listen
from tests.server.engines.harness import eventually, run
from tests.server.http.real_server import HOST, Echo, answers, get, statuses
from tests.server.http.self_signed import needs_openssl, self_signed

pytestmark = pytest.mark.processes


@dataclass
class Fronted:
    """The application, behind HTTP processes."""

    processes: HttpProcesses
    port: int
    refusals: list[str]

    async def ask(self, data, context=None):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, ssl=context)
        try:
            writer.write(data)
            return await reader.read()
        finally:
            writer.close()


def fronted(check, app, **settings):
    """Run `check(server)` on the application behind one HTTP process."""

    async def body():
        refusals = []
        with listen("127.0.0.1", 0) as listeners:
            chosen = Settings(**settings)
            processes = HttpProcesses(web_config(app, chosen), chosen, listeners.sockets, refusals.append)
            serving = asyncio.create_task(processes.serve())
            await eventually(lambda: processes.figures()[0].up)
            try:
                await asyncio.wait_for(check(Fronted(processes, listeners.port, refusals)), 60)
            finally:
                processes.stop()
                await serving

    run(body)


def post(path, content, *lines):
    head = b"".join(line + b"\r\n" for line in (b"Content-Length: %d" % len(content), *lines))
    return b"POST %b HTTP/1.1\r\n%b%b\r\n%b" % (path, HOST, head, content)


def test_requests_and_answers_pass_as_they_do_without():
    app = Echo()

    async def check(server):
        long = os.urandom(3 * 2**20)
        found = answers(await server.ask(get("/one", close=False) + post(b"/two", long, b"Connection: close")))
        assert [status for status, _, _ in found] == [200, 200] and found[0][1]["date"]
        assert json.loads(found[1][2])["body"] == long.decode("latin-1")
        ((status, headers, _),) = answers(await server.ask(get("/chunks")))
        assert status == 200 and headers["transfer-encoding"] == "chunked"
        head = await server.ask(get("/head", method="HEAD"))
        assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n")
        late = await server.ask(post(b"/late", b"now", b"Expect: 100-continue", b"Connection: close"))
        assert statuses(late) == [100, 200]
        early = await server.ask(b"POST /early HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\nonly this")
        assert statuses(early) == [200] and b"connection: close" in early
        assert statuses(await server.ask(b"nonsense\r\n\r\n")) == [400]
        await eventually(lambda: len(server.refusals) == 1)
        assert app.requests[1] == ("POST", "/two", long)

    fronted(check, app)


def test_clients_that_read_slowly_or_leave_are_noticed():
    app = Echo()

    async def check(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(get("/stream"))
        await reader.readuntil(b"data: ")
        before = -1
        while app.streamed != before:  # what nobody reads is not written without end
            before = app.streamed
            await asyncio.sleep(0.3)
        received = 0
        while received < 4 * 2**20:
            received += len(await reader.read(2**16))
        await eventually(lambda: app.streamed > before)
        writer.close()
        await eventually(lambda: app.left == 1)
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(get("/hold"))
        await eventually(lambda: app.requests[-1][1] == "/hold")
        writer.close()
        await eventually(lambda: app.left == 2)
        await eventually(lambda: server.processes.figures()[0].connections == 0)

    fronted(check, app)


def test_an_application_that_fails_is_told_apart_from_one_that_answered():
    async def app(scope, receive, send):
        if scope["path"] == "/half":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise RuntimeError("as the test wants it")

    async def check(server):
        assert statuses(await server.ask(get("/all"))) == [500]
        with contextlib.suppress(ConnectionResetError):
            assert not (await server.ask(get("/half"))).endswith(b"0\r\n\r\n")

    fronted(check, app)


def test_bodies_that_are_on_their_way_are_refused_when_the_server_says_so():
    async def check(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1000\r\n\r\nsome")
        await eventually(lambda: server.processes.figures()[0].connections == 1)
        answered = asyncio.create_task(reader.read())
        while not answered.done():  # a connection is told of before what it brings has been read
            server.processes.end_receiving(Unavailable("It ends."))
            await asyncio.sleep(0.01)
        ((status, _, body),) = answers(answered.result())
        assert status == 503 and json.loads(body)["error"]["message"] == "It ends."
        writer.close()

    fronted(check, Echo())


@needs_openssl
def test_tls_is_spoken_there(tmp_path):
    chain, key = self_signed(tmp_path)

    async def check(server):
        context = ssl.create_default_context(cafile=chain)
        ((status, _, body),) = answers(await server.ask(get("/secure"), context))
        assert status == 200 and json.loads(body)["path"] == "/secure"

    fronted(check, Echo(), tls_cert=chain, tls_key=key)


def test_one_that_hangs_is_ended_and_started_again(caplog):
    async def check(server):
        (before,) = (front.pid for front in server.processes._fronts())
        os.kill(before, signal.SIGSTOP)
        await eventually(lambda: not server.processes.figures()[0].up)
        await eventually(lambda: server.processes.figures()[0].up)
        assert server.processes.figures()[0].restarts == 1
        assert statuses(await server.ask(get("/after"))) == [200]

    fronted(check, Echo(), hang_seconds=1.0)
    assert any("has said nothing for" in record.message for record in caplog.records)
