"""A request in an HTTP process: its connection is here, the application that answers it in the server's process."""

import asyncio
from collections.abc import Callable

from server.errors import ApiError
from server.fronts.link import FrontWire
from server.fronts.messages import BodyEnded, BodyPart, ClientGone, ClientTakes, ProbeClient, ToFront
from server.http.answer import error_bytes
from server.http.cycle import HIGH_WATER, Frame, Wire


class RemoteCycle:
    """Stands for the server's `RequestCycle` of the same number, as far as a connection asks for one.

    Args:
        number: of the request.
        wire: the connection.
        link: to the server's process.
        books: of the requests that the server has not ended, by their numbers; it is taken out when it has, or is told not to.
        keep_alive: whether the connection goes on after it.
        bodiless: whether its answer has no body.
    """

    def __init__(
        self,
        number: int,
        wire: Wire,
        link: FrontWire[ToFront],
        books: "dict[int, RemoteCycle]",
        *,
        keep_alive: bool,
        bodiless: bool = False,
    ) -> None:
        self.number = number
        self.keep_alive = keep_alive
        self.started = False
        self._wire = wire
        self._link = link
        self._books = books
        self._bodiless = bodiless
        self._filled: Callable[[bytes], bytes] = bytes  # until a frame is announced
        self._unread = 0  # bytes of the body that were sent since the application last asked for more
        self._drained: asyncio.Task[None] | None = None  # while the client does not take what is written

    @property
    def _open(self) -> bool:
        """Whether the server has not ended it, nor was told that the client has left."""
        return self.number in self._books

    # --- what its connection says ---

    def feed(self, data: bytes) -> bool:
        """More of the body; whether that is enough for now."""
        if not self._open:
            return False
        self._link.send(BodyPart(self.number, data))
        self._unread += len(data)
        return self._unread > HIGH_WATER

    def end_body(self) -> None:
        """The body is complete."""
        if self._open:
            self._link.send(BodyEnded(self.number))

    def disconnect(self) -> None:
        """The client has left."""
        if self._books.pop(self.number, None) is not None:
            self._link.send(ClientGone(self.number))

    def answer_error(self, error: ApiError) -> None:
        """Answer in the application's place; for it, the client has left."""
        self.keep_alive = False
        self.disconnect()
        self._wire.write(error_bytes(error, self._wire.default_headers, bodiless=self._bodiless))
        self.started = True
        self._wire.answered()

    def probe(self) -> None:
        """Write something that means nothing, to find out whether the client is there."""
        self._link.send(ProbeClient(self.number))

    # --- what the server says ---

    def write(self, data: bytes, started: bool) -> None:
        """Write bytes; whether they belong to the answer."""
        self.started = self.started or started
        self._wire.write(data)
        if self._wire.write_paused and self._drained is None:
            self._link.send(ClientTakes(self.number, False))
            self._drained = asyncio.get_running_loop().create_task(self._tell_when_drained())

    def announce(self, frame: Frame) -> None:
        """This stands around what `fill` is given."""
        self._filled = frame.filled

    def fill(self, middle: bytes) -> None:
        """Write it within the announced frame."""
        self.write(self._filled(middle), True)

    async def _tell_when_drained(self) -> None:
        await self._wire.drained()
        self._drained = None
        self._link.send(ClientTakes(self.number, True))

    def read(self) -> None:
        """The application wants more of the body."""
        self._unread = 0
        self._wire.resume_reading()

    def answered(self, keep_alive: bool) -> None:
        """The answer is complete."""
        del self._books[self.number]
        self.keep_alive = self.keep_alive and keep_alive
        self._wire.answered()

    def cut(self) -> None:
        """What was begun cannot be finished."""
        self._wire.cut()
