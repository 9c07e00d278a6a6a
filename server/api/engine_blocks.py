"""`GET /v1/engines/{engine}/blocks`: which KV blocks an engine has, as a stream of JSON lines for a router outside the server."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from scheduler.types.block_changes import BlockChanges
from scheduler.types.messages import Ready
from server.api.endpoint import Call, GetEndpoint
from server.api.engines import engine_of
from server.api.tenants import ensure_administers
from server.engines.client import EngineClient
from server.engines.published.blocks import BlockSubscription
from server.stream.sse import KEEP_ALIVE_SECONDS, unless_disconnected

_KEEP_ALIVE = b"{}\n"


def line_of(changes: BlockChanges, number: int, info: Ready | None) -> bytes:
    """One line of the stream. That of a beginning says how the engine names its blocks."""
    line: dict[str, object] = {"sequence": number, "anew": changes.anew}
    if changes.anew and info is not None:
        line |= {"fingerprint": info.kv_fingerprint, "block_size": info.block_size}
    line["stored"] = [
        {"name": name.hex(), "parent": parent and parent.hex(), "tokens": tokens, "tier": each.tier}
        for each in changes.stored
        for name, tokens, parent in zip(each.names, each.tokens, each.parents, strict=True)
    ]
    line["removed"] = [{"name": name.hex(), "tier": each.tier} for each in changes.removed for name in each.names]
    return msgspec.json.encode(line) + b"\n"


class BlockStream(Response):
    """The answer: it ends when the client leaves, or the server."""

    media_type = "application/x-ndjson"

    def __init__(self, client: EngineClient) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        subscription = self._client.published.blocks.subscribe()
        try:
            await unless_disconnected(self._send(subscription, send), receive)
        finally:
            subscription.close()

    async def _send(self, subscription: BlockSubscription, send: Send) -> None:
        with contextlib.suppress(OSError):  # what a server may raise if the client has left
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for line in self._lines(subscription):
                await send({"type": "http.response.body", "body": line, "more_body": True})

    async def _lines(self, subscription: BlockSubscription) -> AsyncIterator[bytes]:
        number, changes = 0, asyncio.ensure_future(anext(subscription))
        try:
            while True:
                await asyncio.wait({changes}, timeout=KEEP_ALIVE_SECONDS)
                if not changes.done():
                    yield _KEEP_ALIVE
                    continue
                yield line_of(changes.result(), number, self._client.status.info)
                number, changes = number + 1, asyncio.ensure_future(anext(subscription))
        finally:
            changes.cancel()


async def _blocks(call: Call) -> Response:
    ensure_administers(call.tenant, call.context.settings, "read which blocks engines have")
    return BlockStream(engine_of(call))


ENDPOINT = GetEndpoint(
    path="/v1/engines/{engine}/blocks",
    tag="engines",
    summary="Which KV blocks the engine has and which come and go, as JSON lines without end",
    answer=_blocks,
    content={"application/x-ndjson": {"schema": {"type": "string", "description": "See docs/routing.md."}}},
    errors=(401, 403, 404),
    parameters=[{"name": "engine", "in": "path", "required": True, "schema": {"type": "string"}}],
    while_draining=True,
)
