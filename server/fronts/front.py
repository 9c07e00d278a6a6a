"""One incarnation of an HTTP process, as the server's process sees it."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from configs.settings import Settings
from engine.ipc.child import spawn
from server.engines.process import exit_words, watch_child
from server.fronts.link import FrontWire
from server.fronts.messages import (
    BEAT_SECONDS,
    BodyEnded,
    BodyPart,
    ClientGone,
    ClientRefused,
    ClientTakes,
    CutAll,
    EndReceiving,
    FromFront,
    FrontBeat,
    FrontReady,
    ProbeClient,
    RequestBegun,
    StopServing,
)
from server.fronts.remote_wire import RemoteWire
from server.http.connections import Refusal
from server.http.host import WebHost

_SILENT_BEATS = 3  # that do not come: new connections go to others


class Front:
    """Its process, the wire to it, and the requests that it has.

    Args:
        arguments: its command line, without descriptors.
        host: the application.
        on_refusal: told the code of each error that it answered without the application.

    Attributes:
        ready: whether it takes connections.
        ended: set when the process has ended.
        silence: seconds in which it was not heard of.
        heard: its latest beat.
        trouble: why it was killed, if it was.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, arguments: Sequence[str], host: WebHost, on_refusal: Refusal) -> None:
        self.ready = False
        self.ended = asyncio.Event()
        self.silence = 0.0
        self.heard = FrontBeat(0, 0, 0.0)
        self.trouble: str | None = None
        self._host = host
        self._on_refusal = on_refusal
        self._given = 0
        self._room = True
        self._wires: dict[int, RemoteWire] = {}
        self._link = FrontWire[FromFront](FromFront, self._heard, self._lost, self._has_room)
        self._child, self._socket, self._door = _started(arguments)
        watch_child(self._child, self.ended.set)

    async def connect(self) -> None:
        """Listen to it.

        Raises:
            OSError: that is not possible.
        """
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self._link, sock=self._socket)
        except BaseException:  # else the link has it, and closes it
            self._socket.close()
            raise

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._child.pid

    @property
    def silent(self) -> bool:
        """Whether it may not be able to take anything."""
        return self.silence > _SILENT_BEATS * BEAT_SECONDS

    @property
    def load(self) -> int:
        """Connections that it has, or will have when it has taken all that it was given."""
        return self.heard.open + self._given - self.heard.taken

    def give(self, connection: socket.socket) -> bool:
        """Hand a connection over; whether that was possible."""
        try:
            socket.send_fds(self._door, [b"\0"], [connection.fileno()])
        except OSError:  # it has ended, or takes none
            return False
        self._given += 1
        return True

    def kill(self, trouble: str | None = None) -> None:
        """End it at once; why."""
        self.trouble = self.trouble or trouble
        if self._child.poll() is None:
            self._child.kill()

    def stop(self) -> None:
        """Ask it to end."""
        self._link.send(StopServing())

    def end_receiving(self, reason: str) -> None:
        """Have it refuse the requests whose bodies are still on their way."""
        self._link.send(EndReceiving(reason))

    def cut(self) -> None:
        """Have it close all connections at once."""
        self._link.send(CutAll())

    def close(self) -> None:
        """Release everything, once it has ended."""
        self._lost()
        self._link.close()
        self._door.close()
        if self._child.stdin is not None:
            self._child.stdin.close()

    def describe_end(self) -> str:
        """How it ended, for a log line."""
        return f"process {self.pid} {self.trouble or exit_words(self._child.returncode)}"

    # --- what it says ---

    def _heard(self, message: FromFront) -> None:
        self.silence = 0.0
        match message:
            case RequestBegun():
                self._begin(message)
            case BodyPart() | BodyEnded() | ClientTakes() | ProbeClient():
                wire = self._wires.get(message.number)
                if wire is not None:  # else it was answered while this was under way
                    _tell(wire, message)
            case ClientGone():
                wire = self._wires.pop(message.number, None)
                if wire is not None:
                    wire.gone()
            case FrontBeat():
                self.heard = message
            case ClientRefused():
                self._on_refusal(message.code)
            case FrontReady():
                self.ready = True

    def _begin(self, message: RequestBegun) -> None:
        host, number = self._host, message.number
        wire = self._wires[number] = RemoteWire(number, self._link, lambda: host.default_headers, self._answered)
        ends: dict[str, Any] = {"client": message.client, "server": message.server, "scheme": message.scheme}
        wire.cycle = host.begin(message.head, ends, wire)
        wire.link_takes(self._room)

    def _answered(self, number: int) -> None:
        self._wires.pop(number, None)

    def _has_room(self, room: bool) -> None:
        self._room = room
        for wire in self._wires.values():
            wire.link_takes(room)

    def _lost(self) -> None:
        """Nothing comes from there any more: for the application, its clients have left."""
        self.ready = False
        wires, self._wires = self._wires, {}
        for wire in wires.values():
            wire.gone()


def _tell(wire: RemoteWire, message: BodyPart | BodyEnded | ClientTakes | ProbeClient) -> None:
    match message:
        case BodyPart():
            wire.feed(message.data)
        case BodyEnded():
            wire.end_body()
        case ClientTakes():
            wire.client_takes(message.takes)
        case ProbeClient():
            wire.cycle.probe()


def arguments_of(settings: Settings, name: str) -> list[str]:
    """The command line of one, without its descriptors; keys stay out of it."""
    return [sys.executable, "-m", "server.fronts", "--name", name, "--settings", settings.for_engine()]


def _started(arguments: Sequence[str]) -> "tuple[subprocess.Popen[bytes], socket.socket, socket.socket]":
    """Its process, and our ends of its two sockets: for messages, and for connections."""
    link, its_link = socket.socketpair()
    door, its_door = socket.socketpair()
    try:
        link.setblocking(False)
        door.setblocking(False)
        its = [its_link.fileno(), its_door.fileno()]
        child = spawn([*arguments, "--link", str(its[0]), "--door", str(its[1])], descriptors=its)
    except BaseException:
        link.close()
        door.close()
        raise
    finally:
        its_link.close()
        its_door.close()
    return child, link, door
