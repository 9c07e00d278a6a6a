"""The HTTP process's end of the wire to an engine on another machine."""

import asyncio
from collections.abc import Callable

from engine.ipc.curve import Guard
from scheduler.types.messages import Event
from server.engines.process import Endpoints
from server.engines.wire import EngineWire

_LOOK_SECONDS = 0.1


class NodeWire(EngineWire):
    """Listens on one of this machine's addresses, for one engine; tells when the connection to it breaks.

    A process that is killed breaks it at once, a machine that is gone within the 4 s of silence that `engine/ipc/sockets.py`
    allows. Neither waits for the cluster to notice. A broken connection is not made again, since messages may be lost with it.

    Args:
        guard: of this process.
        address: IP address of this machine that nodes reach.
        engine: its name.

    Raises:
        OSError: a socket cannot be bound.
    """

    def __init__(self, guard: Guard, address: str, engine: str) -> None:
        self._guard, self._domain = guard, engine
        host = f"[{address}]" if ":" in address else address
        super().__init__(Endpoints(f"tcp://{host}:*", f"tcp://{host}:*"), guard, engine)

    def admit(self, key: bytes) -> None:
        """From now on the process with this public key may connect, and nobody else."""
        self._guard.admit(self._domain, frozenset({key}))

    def listen(self, name: str, on_event: Callable[[Event], None], on_broken: Callable[[str], None]) -> None:
        """As every wire; `on_broken` is also called when the connection has broken."""
        super().listen(name, on_event, on_broken)
        loop = asyncio.get_running_loop()

        def look(connected: bool) -> None:
            if self._closed:
                return
            if connected and not self.connected:
                self.receive_waiting(on_event)
                on_broken("the connection to its node broke")
                return
            loop.call_later(_LOOK_SECONDS, look, self.connected)

        look(self.connected)
