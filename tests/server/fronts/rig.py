"""The server's `Front` and an `HttpProcess` in one process: real messages on a wire that the test holds."""

import asyncio
import socket

from uvicorn.server import ServerState

from configs.settings import Settings
from server.fronts import front as fronts
from server.fronts.front import Front
from server.fronts.http_process import HttpProcess
from server.http.cycle import DIRECT_BODY
from server.http.door import web_config
from server.http.head import RequestHead
from server.http.host import WebHost

ENDS = {"client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80), "scheme": "http"}
_QUIET_TURNS = 6
START = {"type": "http.response.start", "status": 200, "headers": []}


class Application:
    """Reads the body, answers what it is told to; notes what it heard."""

    def __init__(self, answer=(b"done",), idle=0):
        self.answer, self.idle = answer, idle
        self.bodies, self.sent, self.left, self.direct = [], 0, 0, []
        self.reads = True

    async def __call__(self, scope, receive, send):
        body, more = b"", self.reads
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            body, more = body + message["body"], message["more_body"]
            for _ in range(self.idle):
                await asyncio.sleep(0)
        self.bodies.append(body)
        await send(START)
        for part in self.answer:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            self.sent += 1
            for _ in range(self.idle):
                await asyncio.sleep(0)
        self.direct.append(scope["extensions"][DIRECT_BODY])
        if self.reads:
            await send({"type": "http.response.body", "body": b""})
            return
        while (await receive())["type"] != "http.disconnect":
            pass
        self.left += 1


def head_of(method="POST", path="/", **other):
    raw = {"raw_path": path.encode(), "query": b"", "headers": [], "length": None}
    return RequestHead(method=method, version="1.1", path=path, keep_alive=True, expects_continue=False, **raw | other)


class HeldTransport:
    """What is written lies here until it is delivered."""

    def __init__(self):
        self.bytes, self.late, self.closed = bytearray(), bytearray(), False

    def set_write_buffer_limits(self, high):
        assert high > 0

    def write(self, data):
        (self.late if self.closed else self.bytes).extend(data)

    def close(self):
        self.closed = True

    def deliver(self, link, size):
        """Hand so many bytes over; whether there were any."""
        some, self.bytes = bytes(self.bytes[:size]), self.bytes[size:]
        if some:
            link.data_received(some)
        return bool(some)


class HeldClient:
    """A connection in the HTTP process: notes what is done to it, and takes what is written only while it is told to."""

    default_headers = ((b"date", b"today"),)

    def __init__(self):
        self.written, self.answers, self.cuts, self.resumed = bytearray(), 0, 0, 0
        self.write_paused = False
        self._taken = asyncio.Event()

    def pause(self):
        self.write_paused = True
        self._taken.clear()

    def take(self):
        self.write_paused = False
        self._taken.set()

    def write(self, data):
        self.written += data

    async def drained(self):
        await self._taken.wait()

    def resume_reading(self):
        self.resumed += 1

    def answered(self):
        self.answers += 1

    def cut(self):
        self.cuts += 1


class NoChild:
    """A process in name only."""

    pid, returncode, stdin = 1, None, None

    def __init__(self):
        self.killed = False

    def poll(self):
        return self.returncode

    def kill(self):
        self.killed = True


def front_of(monkeypatch, app, state, refusals):
    """The server's end of an HTTP process that is none; and the sockets to it, of which the first and the third are its own."""
    sockets = [*socket.socketpair(), *socket.socketpair()]
    with monkeypatch.context() as patched:
        patched.setattr(fronts, "_started", lambda arguments: (NoChild(), sockets[0], sockets[2]))
        patched.setattr(fronts, "watch_child", lambda child, on_exit: None)
        return Front([], WebHost(web_config(app, Settings()), state, {}), refusals.append), sockets


class FrontRig:
    """Both ends. `size`: bytes that pass each way in one turn of the loop."""

    def __init__(self, monkeypatch, app, size=2**20):
        self.size, self.refusals, self.state = size, [], ServerState()
        self.front, self.sockets = front_of(monkeypatch, app, self.state, self.refusals)
        self.process = HttpProcess(Settings(), self.sockets[1], self.sockets[3])
        self.links = self.front._link, self.process._link
        self.from_server, self.from_process = HeldTransport(), HeldTransport()
        self.front._link.connection_made(self.from_server)
        self.process._link.connection_made(self.from_process)

    def begin(self, **head):
        """A request of a new client; returns both."""
        client = HeldClient()
        return self.process._application.begin(head_of(**head), ENDS, client), client

    @property
    def open(self):
        """Requests that either end has in its books."""
        return sorted(self.front._wires), sorted(self.process._application._cycles)

    async def settle(self):
        """Until nothing happens any more."""
        quiet = 0
        while quiet < _QUIET_TURNS:
            await asyncio.sleep(0)
            moved = self.from_process.deliver(self.front._link, self.size)
            moved |= self.from_server.deliver(self.process._link, self.size)
            quiet = 0 if moved else quiet + 1

    async def close(self):
        self.front._link.connection_lost(None)
        for task in list(self.state.tasks):
            task.cancel()
        await asyncio.sleep(0)
        for each in self.sockets:
            each.close()
