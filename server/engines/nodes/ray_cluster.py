"""Ray as the cluster: it finds places, starts an agent on each node, and says when a node is lost. Nothing else imports Ray.

What passes through Ray is what starts and ends processes, and public keys; requests, tokens and KV never do.
"""

import logging
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from configs.settings import Settings
from engine.ipc.peer_list import KeeperPeer
from server.engines.launch import CannotLaunch
from server.engines.nodes.agent import Deployment, NodeAgent
from server.engines.nodes.cluster import Node, NodeLost, NodeRefuses, Seat
from server.engines.nodes.placement import NodeResources, ensure_room, needs_of, seats_of
from server.engines.supervision.keeper import KeeperReport

_log = logging.getLogger("headrace.engine")
_CALLS = 8  # that an agent answers at once, beside those that wait for the end of an engine
_PLACES_SECONDS = 60.0  # until all places are reserved: others may be giving theirs back
_ANSWERS_SECONDS = 5.0
_CALL_SECONDS = 20.0  # for what takes no time
_LOOK_SECONDS = 3.0  # for what is asked again anyway
_ANSWER_SECONDS = 600.0  # a node may download the model first


class NodeSilent(NodeLost):
    """The node has not answered in time; it may be there all the same."""


class SeatKeeper:
    """Holds what is reserved for one engine, for as long as it lives."""

    def where(self) -> tuple[str, list[str]]:
        """The node's id, and the GPUs that are reserved on it."""
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids().get("GPU", [])


class RayNode:
    """A node whose agent is an actor.

    Args:
        address: IP address of the node.
        agent: handle of a `NodeAgent`.
        on_lost: called when it turns out to be gone.
    """

    def __init__(self, address: str, agent: Any, on_lost: Callable[[], None]) -> None:
        self.address = address
        self._agent = agent
        self._on_lost = on_lost

    def prepare(self, engine: str) -> bytes:
        """As `Node` says."""
        key: bytes = self._ask(self._agent.prepare.remote(engine), _ANSWER_SECONDS)
        return key

    def start(self, engine: str, devices: list[str], commands: str, events: str, server: bytes) -> int:
        """As `Node` says."""
        pid: int = self._ask(self._agent.start.remote(engine, devices, commands, events, server), _ANSWER_SECONDS)
        return pid

    def ended(self, engine: str, pid: int) -> int:
        """As `Node` says."""
        code: int = self._ask(self._agent.ended.remote(engine, pid), None)
        return code

    def kill(self, engine: str, pid: int) -> None:
        """As `Node` says."""
        self._agent.kill.remote(engine, pid)

    def peer(self) -> KeeperPeer | None:
        """As `Node` says."""
        peer: KeeperPeer | None = self._ask(self._agent.peer.remote(), _CALL_SECONDS)
        return peer

    def meet(self, peers: list[KeeperPeer]) -> None:
        """As `Node` says."""
        self._ask(self._agent.meet.remote(peers), _CALL_SECONDS)

    def keeper(self) -> KeeperReport | None:
        """How its keeper is doing; None: it has none, yet."""
        try:
            report: KeeperReport | None = self._ask(self._agent.keeper.remote(), _LOOK_SECONDS)
        except NodeSilent as error:
            return KeeperReport(state="hanging", trouble=str(error), restarts={})
        return report

    def stop(self, flush_seconds: float, grace: float) -> None:
        """Have its keeper end."""
        self._ask(self._agent.stop.remote(flush_seconds, grace), flush_seconds + 2 * grace)

    def _ask(self, answer: Any, seconds: float | None) -> Any:
        try:
            return ray.get(answer, timeout=seconds)
        except RayTaskError as error:
            raise error.cause from None
        except GetTimeoutError:
            raise NodeSilent(f"node {self.address} has not answered for {seconds:g} s") from None
        except RayActorError as error:
            self._raise_lost(error)

    def _raise_lost(self, error: RayActorError) -> NoReturn:
        if "ModuleNotFoundError" in str(error):
            text = "headrace is not installed there, in the Python that runs Ray: install it, with the extra ray"
            raise NodeRefuses(f"node {self.address}: {text}") from error
        self._on_lost()
        raise NodeLost(f"node {self.address} was lost") from error


class RayCluster:
    """The nodes of a Ray cluster as a server uses them.

    Args:
        settings: the server's.

    Attributes:
        address: of this machine, as Ray knows it.

    Raises:
        CannotLaunch: there is no such cluster, or too little room in it.
    """

    def __init__(self, settings: Settings) -> None:
        self._needs, self._engines = needs_of(settings), settings.engines
        self._deployment = Deployment(settings.for_engine(), _model(settings), version("headrace"))
        self._connect(str(settings.ray))
        self._lock = threading.Lock()
        self._seats: dict[int, Any] = {}
        self._nodes: dict[str, RayNode] = {}
        self._meeting = threading.Lock()
        self._peers: dict[str, KeeperPeer] = {}  # by the addresses of their nodes
        try:
            nodes = _nodes()
            self.address = nodes[ray.get_runtime_context().get_node_id()].address
            ensure_room(list(nodes.values()), self._needs, self._engines)
            self._places = self._reserved()
        except BaseException:
            ray.shutdown()
            raise

    def _connect(self, address: str) -> None:
        if not _answers(address):
            raise CannotLaunch(
                f"nobody listens at {address}, where the head of the Ray cluster should be: see docs/deploy-many.md."
            )
        try:
            ray.init(address=address, namespace="headrace", logging_level=logging.WARNING, log_to_driver=True)
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            said = str(error).strip().splitlines()
            cause = said[0] if said else type(error).__name__
            raise CannotLaunch(
                f"there is no Ray cluster to join at {address} ({cause}): this machine has to be one of its nodes; see "
                "docs/deploy-many.md."
            ) from error
        if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # Ray sets it itself where it finds a token
            _log.warning(
                "Ray takes commands of anybody who reaches its ports on the nodes: let nobody else reach them, or start Ray "
                "with RAY_AUTH_MODE=token; see docs/deploy-many.md."
            )

    def _reserved(self) -> Any:
        """A place for each engine, spread over the nodes. Ray finds another for one whose node is lost."""
        places = placement_group([self._needs] * self._engines, strategy="SPREAD")
        if not places.wait(_PLACES_SECONDS):
            remove_placement_group(places)
            raise CannotLaunch(
                f"the Ray cluster has not reserved {self._engines} places within {_PLACES_SECONDS:g} s: others use its nodes."
            )
        return places

    def seat(self, number: int, seconds: float) -> Seat | None:
        """As `EngineCluster` says."""
        with self._lock:
            seat = self._seats.get(number)
            if seat is None:
                seat = self._seats[number] = self._new_seat(number)
        try:
            node, devices = ray.get(seat.where.remote(), timeout=seconds)
            return Seat(self._node(node), devices)
        except (RayActorError, NodeLost):
            with self._lock:
                self._seats.pop(number, None)
            return None
        except GetTimeoutError:
            return None

    def _new_seat(self, number: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(self._places, placement_group_bundle_index=number)
        cpus, gpus = self._needs["CPU"], self._needs.get("GPU", 0.0)
        return ray.remote(SeatKeeper).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=strategy).remote()

    def _node(self, node: str) -> RayNode:
        """The node of this id.

        Raises:
            NodeLost: it is gone.
        """
        with self._lock:
            if node not in self._nodes:
                found = _nodes().get(node)
                if found is None:
                    raise NodeLost(f"node {node} was lost")
                here = NodeAffinitySchedulingStrategy(node, soft=False)
                seats = seats_of(found, self._needs, self._engines)
                options = ray.remote(NodeAgent).options(
                    num_cpus=0, max_concurrency=_CALLS + 2 * seats, scheduling_strategy=here
                )
                agent = options.remote(found.address, seats, self._deployment)
                self._nodes[node] = RayNode(found.address, agent, partial(self._forget, node))
                _log.info("node %s: room for %d of %d engines", found.address, seats, self._engines)
            return self._nodes[node]

    def _forget(self, node: str) -> None:
        """Its agent is gone, whether or not the node is: the next engine there has another."""
        with self._lock:
            self._nodes.pop(node, None)

    def introduce(self, node: Node) -> None:
        """As `EngineCluster` says. Who is lost is not told, and found out by the others."""
        peer = node.peer()
        with self._meeting:
            if peer is None or self._peers.get(node.address) == peer:
                return
            self._peers[node.address] = peer
            peers = list(self._peers.values())
            for each in self._living():
                with suppress(NodeLost):
                    each.meet(peers)

    def _living(self) -> list[RayNode]:
        alive = _nodes()
        with self._lock:
            return [node for name, node in self._nodes.items() if name in alive]

    def keepers(self) -> dict[str, KeeperReport]:
        """As `EngineCluster` says."""
        found: dict[str, KeeperReport] = {}
        try:
            nodes = self._living()
        except (RayError, ConnectionError, RuntimeError) as error:
            raise NodeLost(f"the Ray cluster does not answer ({type(error).__name__})") from error
        for node in nodes:
            with suppress(NodeLost):
                if (report := node.keeper()) is not None:
                    found[node.address] = report
        return found

    def stop(self, flush_seconds: float, grace: float) -> None:
        """As `EngineCluster` says."""
        nodes = self._living()
        with ThreadPoolExecutor(len(nodes) or 1) as threads:
            for stopped in [threads.submit(node.stop, flush_seconds, grace) for node in nodes]:
                with suppress(NodeLost):
                    stopped.result()

    def close(self) -> None:
        """Give all places back: what runs there ends, as nobody uses the agents any more."""
        ray.shutdown()


def _nodes() -> dict[str, NodeResources]:
    """The living nodes by their ids."""
    found: dict[str, NodeResources] = {}
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            found[node["NodeID"]] = NodeResources(node["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0))
    return found


def _answers(address: str) -> bool:
    """Whether somebody listens there: Ray would look for a minute and a half."""
    host, _, port = address.rpartition(":")
    if not host:  # the cluster that this machine belongs to
        return True
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_SECONDS).close()
    except OSError:
        return False
    return True


def _model(settings: Settings) -> str | None:
    """The model as a node finds it: a path has to be the same there."""
    if settings.model is None:
        return None
    path = Path(settings.model).expanduser()
    return str(path.resolve()) if path.exists() else settings.model
