"""The engine's end of the wire to the HTTP process: two ZeroMQ sockets, messages of the types in `scheduler.types.messages`."""

import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import msgspec
import zmq

from scheduler.types.messages import COMMANDS, EVENTS, AbortRequests, AddRequest, Shutdown

Command = AddRequest | AbortRequests | Shutdown

_DECODERS: dict[bytes, msgspec.msgpack.Decoder[Any]] = {
    c.__name__.encode(): msgspec.msgpack.Decoder(c) for c in COMMANDS
}
_EVENT_NAMES: dict[type, bytes] = {event: event.__name__.encode() for event in EVENTS}


class ParentGone(Exception):
    """The HTTP process has ended: nobody is left to answer to."""


class Channel:
    """Receives commands, sends events, and notices when the parent is gone (its end of our stdin closes).

    Args:
        commands: endpoint to pull commands from; the parent has bound it.
        events: endpoint to push events to; likewise.
        parent: file descriptor that reads end-of-file when the parent dies, or None to live on without one.
    """

    def __init__(self, commands: str, events: str, parent: int | None = None) -> None:
        self._context = zmq.Context()
        self._commands = self._connect(zmq.PULL, commands)
        self._events = self._connect(zmq.PUSH, events)
        self._encoder = msgspec.msgpack.Encoder()
        self._parent = parent
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._poller = zmq.Poller()
        self._poller.register(self._commands, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        if parent is not None:
            self._poller.register(parent, zmq.POLLIN)

    def _connect(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(0)  # an event must not be dropped; what is under way is bounded by the admitted requests
        socket.connect(endpoint)
        return socket

    def send(self, event: object) -> None:
        """Queue one event; they arrive in the order of the calls."""
        self._events.send_multipart([_EVENT_NAMES[type(event)], self._encoder.encode(event)])

    def wake(self) -> None:
        """End a `wait` from any thread."""
        os.write(self._wake_write, b"\0")

    def wait(self, seconds: float | None = None) -> None:
        """Sleep until a command, a `wake`, or so many seconds.

        Raises:
            ParentGone: the HTTP process has ended.
        """
        ready = dict(self._poller.poll(None if seconds is None else int(seconds * 1000)))
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._parent in ready and not os.read(cast(int, self._parent), 4096):
            raise ParentGone

    def receive(self) -> Iterator[Command]:
        """The commands that wait. A message that is none is reported and dropped: one bad sender must not stop all."""
        while True:
            try:
                frames = self._commands.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                name, body = frames
                yield _DECODERS[name].decode(body)
            except (ValueError, KeyError, msgspec.DecodeError) as error:
                print(f"engine: dropped a message that is no command: {error!r}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Deliver what was sent, then give the sockets back."""
        self._context.destroy(linger=2000)
        os.close(self._wake_read)
        os.close(self._wake_write)
