"""The wire between the server's process and an HTTP process: a Unix socket, and on it all that one turn of the loop said at once.

A frame is four bytes of length and a msgpack list of messages. ZeroMQ's threads would cost a wake-up more on either side.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

from server.fronts.messages import FramesFilled

Incoming = TypeVar("Incoming")
_LENGTH_BYTES = 4
_HIGH_WATER = 8 * 2**20  # bytes that may wait for the other process: some steps of all streams


class FrontWire(asyncio.Protocol, Generic[Incoming]):
    """One end. All calls belong to the event loop's thread.

    Args:
        kinds: the messages that come here, as a union.
        on_message: called with each, in the order in which they were sent.
        on_lost: called when the other end is gone.
        on_room: called when what waits for the other end becomes too much (False), and when it no longer is (True).
    """

    def __init__(
        self,
        kinds: Any,
        on_message: Callable[[Incoming], None],
        on_lost: Callable[[], None],
        on_room: Callable[[bool], None] = lambda room: None,
    ) -> None:
        self._decoder = msgspec.msgpack.Decoder(list[kinds])
        self._encoder = msgspec.msgpack.Encoder()
        self._on_message, self._on_lost, self._on_room = on_message, on_lost, on_room
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._outbox: list[Any] = []
        self._middles: dict[int, bytes] = {}  # of the last message in the outbox, if it is one of those
        self._received = bytearray()

    def send(self, message: Any) -> None:
        """Send it soon, with whatever else is said in this turn of the loop."""
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(message)
        self._middles = {}

    def fill(self, number: int, middle: bytes) -> None:
        """Send what goes into the announced frame of this request: those of a step are one message."""
        middles = self._middles
        if not middles or number in middles:
            self.send(FramesFilled(middles := {}))
            self._middles = middles
        middles[number] = middle

    def _flush(self) -> None:
        messages, self._outbox, self._middles = self._outbox, [], {}
        if messages and self._transport is not None:  # else `close` was faster
            data = self._encoder.encode(messages)
            self._transport.write(len(data).to_bytes(_LENGTH_BYTES) + data)

    def close(self) -> None:
        """Close it, when everything is sent."""
        if self._transport is not None:
            if self._outbox:
                self._flush()
            self._transport.close()

    # --- the transport's part ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Both ends are there."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        """Some of a frame, or several."""
        self._received += data
        start, end = 0, len(self._received)
        while end - start >= _LENGTH_BYTES:
            size = int.from_bytes(self._received[start : start + _LENGTH_BYTES])
            if end - start - _LENGTH_BYTES < size:
                break
            start += _LENGTH_BYTES
            messages = self._decoder.decode(memoryview(self._received)[start : start + size])
            start += size
            for message in messages:
                self._on_message(message)
        del self._received[:start]

    def pause_writing(self) -> None:
        """The other end does not keep up."""
        self._on_room(False)

    def resume_writing(self) -> None:
        """It does again."""
        self._on_room(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """The other end is gone, or this one was closed."""
        self._transport = None
        self._on_lost()
