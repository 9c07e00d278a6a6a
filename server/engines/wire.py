"""The HTTP process's end of the wire to one incarnation of an engine: a socket each way, bound here."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

import zmq

from engine.ipc.codec import MessageCodec, ProtocolError
from engine.ipc.curve import Guard
from engine.ipc.sockets import bound, has_more
from scheduler.types.messages import COMMANDS, EVENTS, Command, Event
from server.engines.process import Endpoints

_log = logging.getLogger("headrace.engine")
_RETRY_SECONDS = 0.005  # until a child that has not connected yet is tried again


class EngineWire:
    """Sends commands and receives events. All calls but the first belong to the event loop's thread.

    The sockets are bound as soon as it is made, so that what the child sends before anybody listens is kept.
    """

    def __init__(self, endpoints: Endpoints, guard: Guard | None = None, domain: str = "") -> None:
        """Bind both sockets.

        Args:
            endpoints: where.
            guard: lets only those connect whom it admits to `domain`; None: nobody else can reach the endpoints.
            domain: as above.

        Raises:
            OSError: one of them cannot be bound.
        """
        self._context = zmq.Context() if guard is None else guard.context
        self._shared = guard is not None
        prepare = () if guard is None else (partial(guard.watch, domain=domain),)
        self._sockets: list[zmq.Socket[bytes]] = []
        try:
            for kind, endpoint in ((zmq.PUSH, endpoints.commands), (zmq.PULL, endpoints.events)):
                self._sockets.append(bound(self._context, kind, endpoint, *prepare))
        except zmq.ZMQError as error:
            self._release()
            raise OSError(error.errno, f"cannot bind {endpoints}: {error.strerror}") from error
        self._commands, self._events = self._sockets
        self._command_codec, self._event_codec = MessageCodec[Command](COMMANDS), MessageCodec[Event](EVENTS)
        self._outbox: deque[bytes] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # the loop that listens
        self._closed = False
        self._name = "engine"
        self._has_dropped = False

    def listen(self, name: str, on_event: Callable[[Event], None], on_broken: Callable[[str], None]) -> None:
        """From now on hand every event to `on_event`, in the order in which they were sent.

        Args:
            name: of the engine, for the log.
            on_event: called in the running loop.
            on_broken: called with the reason when `on_event` fails. Later events are still handed over.
        """

        def read() -> None:
            try:
                self.receive_waiting(on_event)
            except Exception as error:  # a defect of ours must not leave the socket unread: that would be a hang
                _log.exception("%s: an event could not be handled", name)
                on_broken(f"an event could not be handled ({type(error).__name__}: {error})")

        self._name = name
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, read)
        read()  # the descriptor only signals changes, and one may have happened before there was a reader

    @property
    def _descriptor(self) -> int:
        return cast(int, self._events.getsockopt(zmq.FD))

    def receive_waiting(self, on_event: Callable[[Event], None]) -> None:
        """Hand the events that have arrived to `on_event`, without waiting for more. What is no event is dropped: whoever sent it,
        the engine need not end for it. The log has one line about it, however much there is."""
        more = True
        while more and not self._closed:
            try:
                data = self._events.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            more = has_more(self._events)
            try:
                event = self._event_codec.decode(data)
            except ProtocolError as error:
                if not self._has_dropped:
                    dropped = "%s: dropped what is no event of an engine, and will drop more without a word: %s"
                    _log.error(dropped, self._name, error)
                self._has_dropped = True
                continue
            on_event(event)

    def send(self, command: Command) -> None:
        """Queue a command; commands arrive in the order of the calls. Never blocks."""
        self._outbox.append(self._command_codec.encode(command))
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        while self._outbox and not self._closed:
            try:
                self._commands.send(self._outbox[0], zmq.NOBLOCK)
            except zmq.Again:  # it has not connected yet
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._flush)
                return
            self._outbox.popleft()

    def once_connected(self, action: Callable[[], None]) -> None:
        """Call `action` as soon as the child can be sent to, unless the wire is closed before."""
        if self._closed:
            return
        if self.connected:
            action()
        else:
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.once_connected, action)

    @property
    def endpoints(self) -> Endpoints:
        """Where the sockets are, with their ports."""
        commands, events = (cast(bytes, socket.last_endpoint).decode() for socket in self._sockets)
        return Endpoints(commands, events)

    @property
    def connected(self) -> bool:
        """Whether the engine can be sent to."""
        return not self._closed and bool(self._commands.poll(0, zmq.POLLOUT))

    def close(self) -> None:
        """Release the sockets; nothing more is handed over. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._descriptor)
        self._outbox.clear()
        self._release()

    def _release(self) -> None:
        for socket in self._sockets:
            socket.close(linger=0)
        if not self._shared:
            self._context.destroy(linger=0)
