"""ZeroMQ sockets of our wires. None has a high-water mark: a message must never be dropped, and how many can be on their way is
bounded elsewhere (the queue by `max_waiting`, a request by its `max_tokens`, ranks by the steps in flight)."""

from collections.abc import Callable
from typing import cast

import zmq

Prepare = Callable[["zmq.Socket[bytes]"], None]

# As numbers: to compute with enumerations takes longer than to ask.
_EVENTS, _POLLIN = int(zmq.EVENTS), int(zmq.POLLIN)
_BEAT_MS, _SILENCE_MS = 1000, 4000  # of a connection to another machine: one that is silent for so long is broken


def _as_it_is(socket: "zmq.Socket[bytes]") -> None:
    """Between processes of one machine nothing is to be prepared."""


def bound(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str, prepare: Prepare = _as_it_is
) -> "zmq.Socket[bytes]":
    """A socket of this kind that waits at `endpoint` for its peer; `prepare` is called before."""
    socket = _made(context, kind, endpoint, prepare)
    try:
        socket.bind(endpoint)
    except BaseException:
        socket.close(linger=0)
        raise
    return socket


def connected(
    context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str, prepare: Prepare = _as_it_is
) -> "zmq.Socket[bytes]":
    """A socket of this kind whose peer is at `endpoint`. What it sends before the peer is there is kept for it."""
    socket = _made(context, kind, endpoint, prepare)
    socket.connect(endpoint)
    return socket


def _made(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, endpoint: str, prepare: Prepare) -> "zmq.Socket[bytes]":
    socket = context.socket(kind)
    socket.set_hwm(0)
    if endpoint.startswith("tcp:"):
        # A machine that is gone closes no connection. One that has broken is not made again: what was on its way is lost.
        socket.heartbeat_ivl, socket.heartbeat_timeout = _BEAT_MS, _SILENCE_MS
        socket.reconnect_ivl = -1
    prepare(socket)
    return socket


def has_more(socket: "zmq.Socket[bytes]") -> bool:
    """Whether a message has arrived. Until this has said that there is none, the socket's descriptor need not signal the next."""
    return bool(cast(int, socket.get(_EVENTS)) & _POLLIN)
