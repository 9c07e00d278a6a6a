"""Who starts engines on the nodes of a cluster."""

from collections.abc import Sequence

from engine.ipc.curve import Guard
from server.engines.launch import Incarnation
from server.engines.nodes.cluster import EngineCluster
from server.engines.nodes.keepers import NodeKeepers
from server.engines.nodes.process import NodeProcess
from server.engines.nodes.wire import NodeWire
from server.engines.supervision.stop import Keepers


class NodeLauncher:
    """Beside the launcher of this machine's engines (`server/engines/launcher.py`).

    Args:
        names: of the engines, in order.
        cluster: where they run; closed with this object.
        keeps: whether each node has a keeper.

    Attributes:
        keepers: of all nodes.
    """

    def __init__(self, names: Sequence[str], cluster: EngineCluster, keeps: bool = False) -> None:
        self.keepers: Keepers | None = NodeKeepers(cluster) if keeps else None
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
