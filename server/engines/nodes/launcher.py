"""Who starts engines on the nodes of a cluster."""

import asyncio
from collections.abc import Sequence

from engine.ipc.curve import Guard
from server.engines.launch import Incarnation
from server.engines.nodes.cluster import EngineCluster
from server.engines.nodes.process import NodeProcess
from server.engines.nodes.wire import NodeWire
from server.engines.supervision.keeper import KeeperSupervisor
from server.engines.supervision.stop import Keepers


class NodeKeepers:
    """The keepers of a cluster's nodes, at their end."""

    def __init__(self, cluster: EngineCluster) -> None:
        self._cluster = cluster

    async def stop(self, flush_seconds: float, grace: float = 2.0) -> None:
        """Let them write for so long what would be lost with them."""
        await asyncio.to_thread(self._cluster.stop, flush_seconds, grace)


class NodeLauncher:
    """Beside the launcher of this machine's engines (`server/engines/launcher.py`).

    Args:
        names: of the engines, in order.
        cluster: where they run; closed with this object.

    Attributes:
        keeper: none on this machine.
        keepers: of all nodes.
    """

    def __init__(self, names: Sequence[str], cluster: EngineCluster) -> None:
        self.keeper: KeeperSupervisor | None = None
        self.keepers: Keepers | None = NodeKeepers(cluster)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._cluster = cluster
        self._guard = Guard()

    def launch(self, name: str) -> Incarnation:
        """Find a place for the engine of this name and start it there; returns at once.

        Raises:
            OSError: this machine's address cannot be listened on.
        """
        wire = NodeWire(self._guard, self._cluster.address, name)
        process = NodeProcess(name, self._numbers[name], self._cluster, wire, self._guard.public)
        return Incarnation(process, wire)

    def close(self) -> None:
        """End what still runs. May be called again."""
        self._cluster.close()
        self._guard.close()
