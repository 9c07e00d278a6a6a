"""One incarnation of an engine on another machine, from the search for a place to its end."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from server.engines.nodes.cluster import EngineCluster, Node, NodeLost, NodeRefuses, Seat
from server.engines.nodes.wire import NodeWire
from server.engines.process import exit_words

_log = logging.getLogger("headrace.engine")
_LOOK_SECONDS = 1.0  # between two looks whether anybody still wants it
_PATIENCE_SECONDS = 10.0  # a cluster takes some to find a place
EXIT_REFUSED = 1
EXIT_NODE = 5  # its node is lost


class NodeProcess:
    """Finds a place, starts the engine there and waits for its end, in a thread of its own.

    While there is no place (a node is lost, and no other has room) it counts as not started: that time is nobody's fault.

    Args:
        name: the engine's.
        number: its number among the server's.
        cluster: has places.
        wire: to be connected to.
        server: public key of this process.
    """

    def __init__(self, name: str, number: int, cluster: EngineCluster, wire: NodeWire, server: bytes) -> None:
        self._name, self._number = name, number
        self._cluster, self._wire, self._server = cluster, wire, server
        self._endpoints = wire.endpoints
        self._node: Node | None = None
        self._started: float | None = None
        self._words = "has not been started"
        self.pid = 0
        self.exit_code: int | None = None
        self._unwanted, self._over = threading.Event(), threading.Event()
        threading.Thread(target=self._live, name=f"node-{name}", daemon=True).start()

    @property
    def started(self) -> float:
        """When it was; now, while it is not."""
        return time.monotonic() if self._started is None else self._started

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` in the running loop as soon as it has ended."""
        loop = asyncio.get_running_loop()

        def wait() -> None:
            self._over.wait()
            with contextlib.suppress(RuntimeError):  # the loop closed first
                loop.call_soon_threadsafe(on_exit)

        threading.Thread(target=wait, name=f"node-exit-{self._name}", daemon=True).start()

    def remove_endpoints(self) -> None:
        """They have no names in any folder."""

    async def exited(self, seconds: float) -> bool:
        """Wait for its end, for at most `seconds`; whether it has ended."""
        return await asyncio.to_thread(self._over.wait, seconds)

    def kill(self) -> None:
        """End it at once, if it is still alive; nothing is waited for, as its node may be gone."""
        self._unwanted.set()
        node, pid = self._node, self.pid
        if node is not None and pid and not self._over.is_set():
            node.kill(self._name, pid)

    def close(self) -> None:
        """As `kill`. May be called again."""
        self.kill()

    def describe_exit(self) -> str:
        """Which process it was and how it ended, for a log line."""
        return self._words

    # --- in its thread ---

    def _live(self) -> None:
        code = EXIT_NODE
        try:
            seat = self._seat()
            if seat is not None:
                code = self._run(seat)
                self._words = f"process {self.pid} on node {seat.node.address} {exit_words(code)}"
        except NodeRefuses as error:
            code, self._words = EXIT_REFUSED, str(error)
        except NodeLost as error:
            self._words = str(error)
        except Exception as error:  # a defect of ours, or something new of the cluster's: it must not look like a hang
            _log.exception("%s: cannot be started", self._name)
            self._words = f"cannot be started ({type(error).__name__}: {error})"
        self.exit_code = code
        self._over.set()

    def _seat(self) -> Seat | None:
        told, began = False, time.monotonic()
        while not self._unwanted.is_set():
            seat = self._cluster.seat(self._number, _LOOK_SECONDS)
            if seat is not None:
                return seat
            if not told and time.monotonic() - began > _PATIENCE_SECONDS:
                _log.warning("%s: waits for a node with room for it", self._name)
                told = True
        return None

    def _run(self, seat: Seat) -> int:
        node = seat.node
        self._started = time.monotonic()
        self._wire.admit(node.prepare(self._name))
        self._cluster.introduce(node)
        places = self._endpoints.commands, self._endpoints.events
        self.pid = node.start(self._name, seat.devices, *places, self._server)
        self._node = node
        _log.info("%s: process %d on node %s", self._name, self.pid, node.address)
        if self._unwanted.is_set():
            node.kill(self._name, self.pid)
        return node.ended(self._name, self.pid)
