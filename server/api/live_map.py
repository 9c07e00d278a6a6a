"""`GET /v1/map`: what the engines do, as JSON lines for a page that draws it. They are asked only while somebody reads."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from functools import partial

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.endpoint import Call, GetEndpoint
from server.api.engines import state_of
from server.api.tenants import ensure_administers
from server.engines.client import EngineClient
from server.stream.sse import unless_disconnected

_PULSE_SECONDS = 1.0  # at least so often there is a line about each engine


def line_of(client: EngineClient, *, unchanged: bool) -> bytes:
    """A line about one engine: its state, and its newest map; `unchanged`: the map is the one of the line before."""
    drawn = None if unchanged else client.published.map.newest
    line = {
        "engine": client.name,
        "role": client.role.value,
        "state": state_of(client),
        "now": time.monotonic(),
        "unchanged": unchanged,
        "map": None if drawn is None else msgspec.Raw(drawn),
    }
    return msgspec.json.encode(line) + b"\n"


class MapStream(Response):
    """The answer: it ends when the client leaves, or the server. One who reads slowly misses maps, and gets the newest."""

    media_type = "application/x-ndjson"

    def __init__(self, clients: Sequence[EngineClient], over: asyncio.Event) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._clients, self._over = clients, over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        await unless_disconnected(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        with contextlib.suppress(OSError):  # what a server may raise if the client has left
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with contextlib.aclosing(self._lines()) as lines:
                async for line in lines:
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        fresh, arrived, now = set(self._clients), asyncio.Event(), asyncio.get_running_loop().time

        def on_news(client: EngineClient) -> None:
            fresh.add(client)
            arrived.set()

        watches = {client: partial(on_news, client) for client in self._clients}
        for client, watch in watches.items():
            client.published.map.watch(watch)
        ending = asyncio.create_task(self._over.wait())
        ending.add_done_callback(lambda _: arrived.set())
        try:
            pulse = now()
            while not self._over.is_set():
                told, everyone = fresh, now() >= pulse
                fresh = set()
                arrived.clear()
                pulse = now() + _PULSE_SECONDS if everyone else pulse
                shown = [client for client in self._clients if everyone or client in told]
                yield b"".join(line_of(client, unchanged=client not in told) for client in shown)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(arrived.wait(), max(0.0, pulse - now()))
        finally:
            ending.cancel()
            for client, watch in watches.items():
                client.published.map.unwatch(watch)


async def _map(call: Call) -> Response:
    ensure_administers(call.tenant, call.context.settings, "watch the engines")
    return MapStream(list(call.context.engines), call.context.drain.over)


ENDPOINT = GetEndpoint(
    path="/v1/map",
    tag="engines",
    summary="What the engines do, drawn while somebody reads: blocks, requests, steps, as JSON lines without end",
    answer=_map,
    content={"application/x-ndjson": {"schema": {"type": "string", "description": "See docs/map.md."}}},
    errors=(401, 403),
    while_draining=True,
)
