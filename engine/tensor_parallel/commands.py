"""Rank commands: what the first rank has the other ranks do along with it, and the sockets for them.

Ranks compute every step together: the same calls in the same order. Only the first rank sees what a call depends on (the
scheduler's plans, the time that recording a graph has cost), so it says what it is about to do.

What belongs here: those messages, in order. Never: tensors, which go between the ranks' devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import zmq

from engine.ipc.codec import MessageCodec
from engine.ipc.sockets import bound, connected
from scheduler.types.step import Step


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute this step."""

    step: Step


@dataclass(frozen=True, slots=True)
class Record:
    """Record the CUDA graph of this kind of step (`engine.gpu.graph_policy.GraphShape`) and of so many rows."""

    kind: Literal["decode", "chunks"]
    rows: int


@dataclass(frozen=True, slots=True)
class Warmup:
    """Run every shape of the forward pass once, so that all kernels are compiled."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End: nothing more will come."""


RankCommand = Submit | Record | Warmup | Stop

_CODEC = MessageCodec[RankCommand]((Submit, Record, Warmup, Stop))
_LINGER_MS = 1000  # for ranks that have not fetched the last commands yet


class RankCommandSender:
    """The first rank's end.

    Args:
        endpoints: one ZeroMQ address for each other rank, which binds it.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._context = zmq.Context()
        self._sockets = [connected(self._context, zmq.PUSH, endpoint) for endpoint in endpoints]

    def send(self, command: RankCommand) -> None:
        """Queue a command for each of them; does not wait."""
        data = _CODEC.encode(command)
        for socket in self._sockets:
            socket.send(data)

    def close(self) -> None:
        """Give the sockets back; what has not been fetched within a second is dropped."""
        self._context.destroy(linger=_LINGER_MS)


class RankCommandReceiver:
    """Another rank's end, bound to `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = bound(self._context, zmq.PULL, endpoint)

    def receive(self) -> RankCommand:
        """Wait for the next command.

        Raises:
            ProtocolError: what came is not a rank command.
        """
        return _CODEC.decode(self._socket.recv())

    def close(self) -> None:
        """Give the socket back."""
        self._context.destroy(linger=0)
