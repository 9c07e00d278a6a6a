"""What batches ask of whoever answers their lines."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from server.batches.records import StoredBatch

Fault = Literal["none", "busy", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineAnswer:
    """What a request of a batch was answered.

    Attributes:
        status: as of HTTP.
        body: JSON.
        request_id: under which the server's log knows it.
        fault: whose it is that there is no result: nobody's or the request's (`none`), that of a server which was `busy`, or that
            of one which is `broken`.
    """

    status: int
    body: bytes
    request_id: str
    fault: Fault = "none"


class LineRequest(Protocol):
    """One line, over all attempts at it."""

    async def answer(self, body: bytes) -> LineAnswer:
        """The answer to one attempt. Raises nothing but what is no fault of a request."""

    def failed(self) -> LineAnswer:
        """The answer if the server failed on it before there was one."""


class Answers(Protocol):
    """Answers lines as the key that made their batch."""

    def models(self, batch: StoredBatch) -> Collection[str] | None:
        """The names that its lines may give; None: it may not run now, as its key is not valid, or its endpoint is not served."""

    def begin(self, batch: StoredBatch) -> AbstractContextManager[LineRequest]:
        """A line of a batch that may run, until it has ended."""
