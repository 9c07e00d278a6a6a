"""From an HTTP request to what a route works with, off the event loop where it takes long."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from server.api.context import Services
from server.api.parse import Parsed, parse
from server.schema.base import Body
from server.to_thread import INLINE_BYTES, work_of

B = TypeVar("B", bound=Body)
R = TypeVar("R")


async def handle(
    request: Request, services: Services, model: type[B], work: Callable[[B, Services], R]
) -> tuple[R, Parsed[B]]:
    """Parse the body and do the route's CPU-bound work on it.

    Raises:
        ApiError: what `parse` or `work` refuses.
        starlette.requests.ClientDisconnect: the client left while it sent the body.
    """
    body = await request.body()

    def both() -> tuple[R, Parsed[B]]:
        parsed = parse(model, body, request.headers.get("content-type"), services.settings)
        return work(parsed.request, services), parsed

    return await work_of(len(body), INLINE_BYTES, both)
