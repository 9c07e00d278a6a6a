"""The engine's end of the wire to the HTTP process: two ZeroMQ sockets, messages of the types in `scheduler.types.messages`."""

import logging
import math
import os
from collections.abc import Iterator

import zmq

from engine.ipc.child import parent_gone
from engine.ipc.codec import MessageCodec, ProtocolError
from engine.ipc.curve import PeerKeys
from engine.ipc.sockets import connected
from scheduler.types.messages import COMMANDS, EVENTS, Command, Event

log = logging.getLogger("headrace.engine")


class ParentGone(Exception):
    """The HTTP process has ended: nobody is left to answer to."""


class Channel:
    """Receives commands, sends events, and notices when the parent is gone (its end of our stdin closes).

    Args:
        commands: endpoint to pull commands from; the parent has bound it.
        events: endpoint to push events to; likewise.
        parent: file descriptor that reads end-of-file when the parent dies, or None to live on without one.
        keys: of a wire to another machine.
    """

    def __init__(self, commands: str, events: str, parent: int | None = None, keys: PeerKeys | None = None) -> None:
        self._context = zmq.Context()
        prepare = () if keys is None else (keys.apply,)
        self._commands = connected(self._context, zmq.PULL, commands, *prepare)
        self._events = connected(self._context, zmq.PUSH, events, *prepare)
        self._command_codec = MessageCodec[Command](COMMANDS)
        self._event_codec = MessageCodec[Event](EVENTS)
        self._parent = parent
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        self._poller = zmq.Poller()
        self._poller.register(self._commands, zmq.POLLIN)
        self._poller.register(self._wake_read, zmq.POLLIN)
        if parent is not None:
            self._poller.register(parent, zmq.POLLIN)

    def send(self, event: Event) -> None:
        """Queue one event; they arrive in the order of the calls.

        Raises:
            ParentGone: the wire is one to another machine, and has broken.
        """
        try:
            self._events.send(self._event_codec.encode(event), zmq.NOBLOCK)
        except zmq.Again:
            raise ParentGone from None

    def wake(self) -> None:
        """End a `wait` from any thread."""
        os.write(self._wake_write, b"\0")

    def wait(self, seconds: float | None = None) -> None:
        """Sleep until a command or a `wake`, at most `seconds`.

        Raises:
            ParentGone: the HTTP process has ended.
        """
        ready = dict(self._poller.poll(None if seconds is None else math.ceil(seconds * 1000)))
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._parent is not None and self._parent in ready and parent_gone(self._parent):
            raise ParentGone

    def receive(self) -> Iterator[Command]:
        """The commands that wait. A message that is not a command is logged and dropped: it must not end every request."""
        while True:
            try:
                data = self._commands.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                command = self._command_codec.decode(data)
            except ProtocolError as error:
                log.error("dropped a message that is not a command: %s", error)
                continue
            yield command

    def close(self) -> None:
        """Deliver what was sent, then give the sockets back."""
        self._context.destroy(linger=2000)
        os.close(self._wake_read)
        os.close(self._wake_write)
