"""From an HTTP request to what a route works with, off the event loop where it takes long."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.parse import Parsed, parse
from server.protocol.base import Body
from server.services import Services
from server.sse import CLIENT_GONE

# Tokenizing runs at some MB/s: a body of this size takes a few milliseconds, as long as other streams may be kept waiting.
INLINE_BYTES = 16 * 1024

B = TypeVar("B", bound=Body)
R = TypeVar("R")


class ClientLeft(Exception):
    """The client left while it sent the body."""


async def handle(
    request: Request, services: Services, model: type[B], work: Callable[[B, Services], R]
) -> tuple[R, Parsed[B]]:
    """Parse the body and do the route's CPU-bound work on it.

    Raises:
        ApiError: what `parse` or `work` refuses.
        ClientLeft: nobody waits for an answer.
    """
    try:
        body = await request.body()
    except ClientDisconnect:
        raise ClientLeft from None

    def both() -> tuple[R, Parsed[B]]:
        parsed = parse(model, body, request.headers.get("content-type"), services.settings)
        return work(parsed.request, services), parsed

    return both() if len(body) <= INLINE_BYTES else await asyncio.to_thread(both)


def client_left() -> Response:
    """An answer that nobody reads."""
    return Response(status_code=CLIENT_GONE)
