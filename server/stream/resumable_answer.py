"""One connection's part of a resumable stream, as server-sent events."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.stream import sse
from server.stream.resumable import EventReader, ResumableStream
from server.stream.sse import EVENT_HEADERS, cancelled, disconnect
from server.telemetry.lifetime import Exchange

STREAM_ID = "X-Stream-Id"
_LAST_WORD_SECONDS = 1.0  # in which a connection whose place another has taken may be told so
_log = logging.getLogger("headrace.http")


async def has_begun(stream: ResumableStream, receive: Receive) -> bool:
    """Wait for the first event, or until a keep-alive is due; False if the client has left.

    Raises:
        ApiError: the answer broke before it began.
    """
    first, gone = asyncio.create_task(stream.begun()), asyncio.create_task(disconnect(receive))
    try:
        await asyncio.wait({first, gone}, timeout=sse.KEEP_ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if first.done():
            first.result()
        return not gone.done()
    finally:
        await cancelled(first, gone)


class ResumableAnswer(Response):
    """The stream behind event `position`. The connection takes part while it is called, and only then.

    `resumes`: whether it goes on with a stream that another request began.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        stream: ResumableStream,
        exchange: Exchange,
        headers: Mapping[str, str],
        *,
        position: int = 0,
        resumes: bool = False,
    ) -> None:
        super().__init__(headers={**EVENT_HEADERS, STREAM_ID: stream.id, **headers})
        del self.headers["content-length"]
        self._stream = stream
        self._reader = EventReader(position, exchange, resumes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the stream ends, the client leaves, or another connection takes its place.

        Raises:
            EventsDropped, StreamDeleted: what comes behind the position has gone in the meantime.
        """
        stream, reader = self._stream, self._reader
        stream.attach(reader)
        work, gone = asyncio.create_task(self._send(send)), asyncio.create_task(disconnect(receive))
        ended = asyncio.create_task(reader.ended.wait())
        try:
            await asyncio.wait({work, gone, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                await asyncio.wait({work, gone}, timeout=_LAST_WORD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            await cancelled(work, gone, ended)
            stream.detach(reader)

    async def _send(self, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with contextlib.aclosing(self._stream.read(self._reader)) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # what a server may raise if the client has left
            _log.debug("the client of %s left", self._stream.id)
