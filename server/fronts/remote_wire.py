"""A request's connection as the server's process sees it: an HTTP process has it."""

import asyncio
from collections.abc import Callable
from functools import partial

from server.fronts.link import FrontWire
from server.fronts.messages import AnswerEnded, CutConnection, FrameAnnounced, FromFront, ReadOn, WriteBytes
from server.http.cycle import HIGH_WATER, Frame, RequestCycle


class RemoteWire:
    """The `Wire` of one `RequestCycle`.

    Args:
        number: of the request.
        link: to the HTTP process.
        default_headers: those of every answer.
        on_answered: called when the answer is complete.

    Attributes:
        cycle: the request; given as soon as it is made.
    """

    cycle: RequestCycle

    def __init__(
        self,
        number: int,
        link: FrontWire[FromFront],
        default_headers: Callable[[], list[tuple[bytes, bytes]]],
        on_answered: Callable[[int], None],
    ) -> None:
        self.write_paused = False
        self._number = number
        self._link = link
        self._default_headers = default_headers
        self._on_answered = on_answered
        self._client_takes = self._link_takes = True
        self._writable = asyncio.Event()
        self._writable.set()
        self._unread = 0  # bytes of the body that have come since more was last asked for

    # --- what the HTTP process says ---

    def feed(self, data: bytes) -> None:
        """More of the body."""
        self._unread += len(data)
        self.cycle.feed(data)

    def end_body(self) -> None:
        """The body is complete."""
        self.cycle.end_body()

    def gone(self) -> None:
        """The client has left, or the process that had it has ended."""
        self.cycle.disconnect()
        self._writable.set()

    def client_takes(self, takes: bool) -> None:
        """Whether it takes what is written."""
        self._client_takes = takes
        self._look()

    def link_takes(self, takes: bool) -> None:
        """Whether the HTTP process does."""
        self._link_takes = takes
        self._look()

    def _look(self) -> None:
        self.write_paused = not (self._client_takes and self._link_takes)
        if self.write_paused and not self.cycle.disconnected:
            self._writable.clear()
        else:
            self._writable.set()

    # --- what the cycle asks for ---

    @property
    def default_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every answer."""
        return self._default_headers()

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._link.send(WriteBytes(self._number, data, self.cycle.started))

    def framed(self, frame: Frame) -> Callable[[bytes], None]:
        """What sends this around what it is given: the HTTP process knows it from now on."""
        self._link.send(FrameAnnounced(self._number, frame))
        return partial(self._link.fill, self._number)

    async def drained(self) -> None:
        """Wait until the client has taken enough of what was written, or has left."""
        await self._writable.wait()

    def resume_reading(self) -> None:
        """The application wants more of the body: what the HTTP process holds back then, as much as has come here."""
        if self._unread > HIGH_WATER:
            self._unread = 0
            self._link.send(ReadOn(self._number))

    def answered(self) -> None:
        """The answer is complete."""
        self._link.send(AnswerEnded(self._number, self.cycle.keep_alive))
        self._on_answered(self._number)

    def cut(self) -> None:
        """Close at once."""
        self._link.send(CutConnection(self._number))
        self._on_answered(self._number)
