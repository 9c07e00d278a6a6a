"""What the first rank tells the others to do along with it, and the sockets for it.

Ranks compute every step together: the same calls in the same order. What decides on a call (the scheduler's plans, the time that
recording a graph has cost) is seen by the first rank alone, so it says what it is about to do.

What belongs here: those messages, in order. Never: tensors, which go between the ranks' devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from engine.gpu.graph_policy import Bucket
from scheduler.types.step import Step


@dataclass(frozen=True, slots=True)
class Submit:
    """Compute this step."""

    step: Step


@dataclass(frozen=True, slots=True)
class Record:
    """Record the CUDA graph of this shape."""

    bucket: Bucket


@dataclass(frozen=True, slots=True)
class Rehearse:
    """Have every kernel compiled (`GpuModel.rehearse`)."""


@dataclass(frozen=True, slots=True)
class Leave:
    """There is nothing more to do."""


Order = Submit | Record | Rehearse | Leave

_DECODERS: dict[bytes, msgspec.msgpack.Decoder[Any]] = {
    kind.__name__.encode(): msgspec.msgpack.Decoder(kind) for kind in (Submit, Record, Rehearse, Leave)
}


class OrderSender:
    """The first rank's end.

    Args:
        endpoints: of the others, a ZeroMQ address each, which they bind.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self._context = zmq.Context()
        self._sockets = [self._connect(endpoint) for endpoint in endpoints]
        self._encoder = msgspec.msgpack.Encoder()

    def _connect(self, endpoint: str) -> "zmq.Socket[bytes]":
        """The side that connects may send before the other is there, and never waits for it."""
        socket = self._context.socket(zmq.PUSH)
        socket.set_hwm(0)  # an order must not be dropped; two steps are under way at most
        socket.connect(endpoint)
        return socket

    def tell(self, order: Order) -> None:
        """Queue an order for each of them; does not wait."""
        frames = [type(order).__name__.encode(), self._encoder.encode(order)]
        for socket in self._sockets:
            socket.send_multipart(frames)

    def close(self) -> None:
        """Give the sockets back; what nobody has fetched for a second is dropped."""
        self._context.destroy(linger=1000)


class OrderReceiver:
    """The end of one of the others, bound to `endpoint`."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PULL)
        self._socket.set_hwm(0)
        self._socket.bind(endpoint)

    def receive(self) -> Order:
        """Wait for the next order."""
        name, body = self._socket.recv_multipart()
        order: Order = _DECODERS[name].decode(body)
        return order

    def close(self) -> None:
        """Give the socket back."""
        self._context.destroy(linger=0)
