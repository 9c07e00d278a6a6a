"""What is asked of a cluster, whoever runs it: places for engines, and on each node somebody who starts them."""

from dataclasses import dataclass
from typing import Protocol

from engine.ipc.peer_list import KeeperPeer
from server.engines.supervision.keeper import KeeperReport


class NodeLost(Exception):
    """The node, or its place in the cluster, is gone; the sentence says which."""


class NodeRefuses(Exception):
    """Nothing can be started on the node as it is; the sentence says why and what to do."""


class Node(Protocol):
    """A machine of the cluster. Calls may come from any thread, and wait for the answer.

    Each raises `NodeLost` where none comes.

    Attributes:
        address: its IP address.
    """

    address: str

    def prepare(self, engine: str) -> bytes:
        """Make keys for an engine's next incarnation. Returns the public one.

        Raises:
            NodeRefuses: the model is not there, or the node has another version of headrace.
        """

    def start(self, engine: str, devices: list[str], commands: str, events: str, server: bytes) -> int:
        """Start it, after the one before has been ended. Returns its process id.

        Args:
            engine: its name.
            devices: its GPUs.
            commands: endpoint of the wire to the server.
            events: likewise.
            server: public key of the server.

        Raises:
            NodeRefuses: no process can be started.
        """

    def ended(self, engine: str, pid: int) -> int:
        """Wait until that process has ended. Returns its exit code."""

    def peer(self) -> KeeperPeer | None:
        """Its keeper, as other nodes reach it; None: it has none. After `prepare`."""

    def meet(self, peers: list[KeeperPeer]) -> None:
        """Tell it which keepers there are."""

    def kill(self, engine: str, pid: int) -> None:
        """End it at once. Does not wait, and says nothing if the node is gone."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A place for one engine."""

    node: Node
    devices: list[str]


class EngineCluster(Protocol):
    """Nodes with places for the engines of one server.

    Attributes:
        address: IP address of this machine that nodes reach.
    """

    address: str

    def seat(self, number: int, seconds: float) -> Seat | None:
        """The place of the engine of this number; where the one it had is lost, the next. Waits for one, for at most that long.

        Returns:
            None if there is none yet.
        """

    def introduce(self, node: Node) -> None:
        """A node is prepared: tell it and the others of each other's keepers."""

    def keepers(self) -> dict[str, KeeperReport]:
        """How the keeper of each living node is doing, by the node's address. Waits for the answers.

        Raises:
            NodeLost: the cluster itself does not answer.
        """

    def stop(self, flush_seconds: float, grace: float) -> None:
        """The engines have ended: let the keepers of all nodes write for so long what would be lost with them. Waits for it."""

    def close(self) -> None:
        """Give all places back; what still runs there ends."""
