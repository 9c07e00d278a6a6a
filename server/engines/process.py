"""One incarnation of the engine: the child process, its two sockets, its private folder. Knows no request.

The sockets are bound here, in a folder of this incarnation alone, so that nothing a dead engine left is ever read. No
high-water mark on either side: an event must not be dropped, and what can be under way is bounded by the admitted
requests (the queue by `max_waiting`, each request by its `max_tokens`).
"""

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import zmq

from configs.settings import Settings
from engine.ipc.private_folder import private_folder
from scheduler.types.messages import (
    COMMANDS,
    EVENTS,
    AbortRequests,
    AddRequest,
    Failed,
    MemoryPlan,
    Phase,
    Ready,
    Shutdown,
    StepOutputs,
)

Command = AddRequest | AbortRequests | Shutdown
Event = MemoryPlan | Phase | Ready | Failed | StepOutputs

_ENCODER = msgspec.msgpack.Encoder()
_DECODERS = {event.__name__: msgspec.msgpack.Decoder(event) for event in EVENTS}
_COMMAND_NAMES = {command: command.__name__.encode() for command in COMMANDS}
_RETRY_SECONDS = 0.005  # until a child that has not connected yet is tried again


class ProtocolError(Exception):
    """The engine sent something outside `EVENTS`."""


def engine_arguments(settings: Settings, source: object) -> list[str]:
    """The command line of an engine, but for its endpoints. API keys stay out: a command line is public."""
    return [
        *(sys.executable, "-m", "engine"),
        *("--settings", settings.for_engine()),
        *("--source", msgspec.json.encode(source, enc_hook=str).decode()),
    ]


class EngineProcess:
    """Starts `arguments` with `--commands` and `--events` at once; the rest of the server may be imported meanwhile.

    The child's stdin is a pipe that ends with this process, which is how the child learns of our death. It runs in a
    session of its own, so that Ctrl-C reaches the server only, which then decides what becomes of open requests.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.started = time.monotonic()
        self._folder = private_folder("headrace-")
        commands, events = (f"ipc://{self._folder}/{name}" for name in ("commands", "events"))
        self._child = subprocess.Popen(
            [*arguments, "--commands", commands, "--events", events], stdin=subprocess.PIPE, start_new_session=True
        )
        self._context = zmq.Context()
        self._commands = self._socket(zmq.PUSH, commands)
        self._events = self._socket(zmq.PULL, events)
        self._outbox: deque[list[bytes]] = deque()
        self._closed = False

    def _socket(self, kind: int, endpoint: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.bind(endpoint)
        return socket

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative: killed by that signal."""
        return self._child.poll()

    def fileno(self) -> int:
        """Becomes readable, edge-triggered, when events may wait: call `receive` until it answers None."""
        return cast(int, self._events.getsockopt(zmq.FD))

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` in the running loop as soon as the child has ended. A thread waits: no polling, any platform."""
        loop = asyncio.get_running_loop()

        def wait() -> None:
            self._child.wait()
            with contextlib.suppress(RuntimeError):  # the loop closed first
                loop.call_soon_threadsafe(on_exit)

        threading.Thread(target=wait, name="engine-exit", daemon=True).start()

    def receive(self) -> Event | None:
        """The next event, or None when none waits.

        Raises:
            ProtocolError: not two frames, an unknown type, or a body that is not of that type.
        """
        try:
            frames = self._events.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        try:
            name, body = frames
            return cast(Event, _DECODERS[name.decode()].decode(body))
        except (ValueError, KeyError, msgspec.DecodeError) as error:
            raise ProtocolError(f"the engine sent what is no event: {frames[0][:40]!r}: {error}") from error

    def unlink(self) -> None:
        """Remove the endpoints' folder once both sides are connected: from then on, even kill -9 leaves nothing behind."""
        if self._commands.poll(0, zmq.POLLOUT):
            shutil.rmtree(self._folder, ignore_errors=True)

    def send(self, command: Command) -> None:
        """Queue a command; commands arrive in the order of the calls. Never blocks."""
        self._outbox.append([_COMMAND_NAMES[type(command)], _ENCODER.encode(command)])
        if len(self._outbox) == 1:
            self._flush()

    def _flush(self) -> None:
        if self._closed:
            return
        while self._outbox:
            try:
                self._commands.send_multipart(self._outbox[0], zmq.NOBLOCK)
            except zmq.Again:  # it has not connected yet
                asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._flush)
                return
            self._outbox.popleft()

    async def shut_down(self, grace: float) -> None:
        """Ask it to exit, wait up to `grace` seconds, then kill it. `close` is still to be called."""
        if self.exit_code is None and grace > 0:
            self.send(Shutdown(reason="the server stops"))
            await asyncio.to_thread(self._wait, grace)
        if self.exit_code is None:
            self._child.kill()

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)

    def close(self) -> None:
        """Kill the child if it still lives and give everything back. May be called again."""
        if self._closed:
            return
        self._closed = True
        if self.exit_code is None:
            self._child.kill()
        self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._outbox.clear()
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def describe_exit(self) -> str:
        """How it ended, for a log line."""
        code = self.exit_code
        if code is None:
            return "is still running"
        return f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def receive_all(process: EngineProcess, handle: Callable[[Any], None]) -> None:
    """Hand every waiting event to `handle`."""
    while (event := process.receive()) is not None:
        handle(event)
