"""A real web server on a real socket, in the test's own event loop, over an application that notes what it is asked."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from configs.settings import Settings
from server.http.connections import Connections
from server.http.door import OwnDoor, WebServer
from server.http.limits import HttpLimits
from server.listen import Listeners, listen
from tests.server.engines.harness import run

QUICK = HttpLimits(
    head_seconds=0.3, body_seconds=0.3, idle_seconds=0.3, stall_seconds=0.3, linger_seconds=0.5, tick_seconds=0.02
)
HOST = b"Host: here\r\n"


@dataclass
class Echo:
    """Answers with what it was asked; `/hold` waits for the gate, `/stream` sends events forever, `/early` reads no body."""

    requests: list[tuple[str, str, bytes]] = field(default_factory=list)
    left: int = 0  # requests whose clients left
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    streamed: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        if scope["path"] != "/early":
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    self.left += 1
                    return
                body += message["body"]
                if not message["more_body"]:
                    break
        self.requests.append((scope["method"], scope["path"], body))
        if scope["path"] == "/hold" and not await self._opened(receive):
            return
        if scope["path"] == "/stream":
            await self._stream(receive, send)
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        answer = {"method": scope["method"], "path": scope["path"], "body": body.decode("latin-1"), "headers": headers}
        content = json.dumps(answer | {"query": scope["query_string"].decode()}).encode()
        length = [(b"content-length", str(len(content)).encode())] if scope["path"] != "/chunks" else []
        await send({"type": "http.response.start", "status": 200, "headers": length})
        await send({"type": "http.response.body", "body": content[:10], "more_body": True})
        await send({"type": "http.response.body", "body": content[10:]})

    async def _opened(self, receive: Any) -> bool:
        gone, opened = asyncio.create_task(receive()), asyncio.create_task(self.gate.wait())
        await asyncio.wait({gone, opened}, return_when=asyncio.FIRST_COMPLETED)
        self.left += not opened.done()
        for task in (gone, opened):
            task.cancel()
        return opened.done()

    async def _stream(self, receive: Any, send: Any) -> None:
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        while not gone.done():
            await send(
                {"type": "http.response.body", "body": b"data: %08d\n\n" % self.streamed * 64, "more_body": True}
            )
            self.streamed += 1
            await asyncio.sleep(0)
        self.left += 1


@dataclass
class Running:
    listeners: Listeners
    connections: Connections
    refusals: list[str]
    web: WebServer

    @property
    def port(self) -> int:
        return self.listeners.port

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, data: bytes, *, eof: bool = False) -> bytes:
        """All that is answered to `data` until the server closes the connection."""
        reader, writer = await self.open()
        try:
            writer.write(data)
            if eof:
                writer.write_eof()
            return await reader.read()
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def running(
    app: ASGIApp,
    limits: HttpLimits | None = None,
    listeners: Listeners | None = None,
    settings: Settings | None = None,
) -> AsyncIterator[Running]:
    refusals: list[str] = []
    connections = Connections(limits or HttpLimits(), refusals.append)
    listeners = listeners or listen("127.0.0.1", 0)
    door = OwnDoor(app, connections, settings or Settings(), listeners.sockets, listeners.certificate)
    web = door.web
    task = asyncio.create_task(door.serve())
    while not web.started:
        await asyncio.sleep(0.001)
    try:
        yield Running(listeners, connections, refusals, web)
    finally:
        connections.cut()
        web.should_exit = True
        await task


def answers(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """The answers in these bytes, each with status, headers and body; what has neither length nor chunks goes to the end."""
    found = []
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if status == 100:
            body = b""
        elif "content-length" in headers:
            size = int(headers["content-length"])
            body, data = data[:size], data[size:]
        elif headers.get("transfer-encoding") == "chunked":
            body, data = _unchunked(data)
        else:
            body, data = data, b""
        found.append((status, headers, body))
    return found


def _unchunked(data: bytes) -> tuple[bytes, bytes]:
    body = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        count = int(size, 16)
        body, data = body + data[:count], data[count + 2 :]
        if not count:
            return body, data


def get(path: str = "/x", *headers: bytes, method: str = "GET", version: str = "1.1", close: bool = True) -> bytes:
    lines = b"".join(header + b"\r\n" for header in (*headers, *([b"Connection: close"] if close else [])))
    return f"{method} {path} HTTP/{version}\r\n".encode() + HOST + lines + b"\r\n"


def statuses(data: bytes) -> list[int]:
    return [status for status, _, _ in answers(data)]


def served(check, limits: HttpLimits | None = None) -> Echo:
    """Run `check(server, echo)` on a server over an `Echo`."""
    echo: list[Echo] = []

    async def body():
        app = Echo()
        echo.append(app)
        async with running(app, limits) as server:
            await asyncio.wait_for(check(server, app), 60)

    run(body)
    return echo[0]
