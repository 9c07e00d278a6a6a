"""ZeroMQ sockets of our wires. None has a high-water mark: a message must never be dropped, and how many can be on their way is
bounded elsewhere (the queue by `max_waiting`, a request by its `max_tokens`, ranks by the steps in flight)."""

import zmq


def bound(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str) -> "zmq.Socket[bytes]":
    """A socket of this kind that waits at `endpoint` for its peer."""
    socket = _unlimited(context, kind)
    socket.bind(endpoint)
    return socket


def connected(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str) -> "zmq.Socket[bytes]":
    """A socket of this kind whose peer is at `endpoint`. What it sends before the peer is there is kept for it."""
    socket = _unlimited(context, kind)
    socket.connect(endpoint)
    return socket


def _unlimited(context: "zmq.Context[zmq.Socket[bytes]]", kind: int) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.set_hwm(0)
    return socket
