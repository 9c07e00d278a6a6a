"""How many engines a node has room for, and whether a cluster has room for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.settings import Settings
from server.engines.launch import CannotLaunch


@dataclass(frozen=True, slots=True)
class NodeResources:
    """What a node has, used or not."""

    address: str
    cpus: float
    gpus: float


def needs_of(settings: Settings) -> dict[str, float]:
    """What is reserved for one engine, all of it on one node: so a tensor-parallel group stays together."""
    gpus = {"GPU": float(settings.gpus_per_engine)} if settings.gpus_per_engine else {}
    return {"CPU": float(settings.cpus_per_engine), **gpus}


def seats_of(node: NodeResources, needs: Mapping[str, float], most: int) -> int:
    """Engines that it has room for, of `most` altogether."""
    has = {"CPU": node.cpus, "GPU": node.gpus}
    return min(most, *(int(has[name] // amount) for name, amount in needs.items()))


def ensure_room(nodes: Sequence[NodeResources], needs: Mapping[str, float], engines: int) -> None:
    """Refuse what would wait for ever.

    Raises:
        CannotLaunch: all nodes together have room for fewer engines.
    """
    seats = {node.address: seats_of(node, needs, engines) for node in nodes}
    if sum(seats.values()) >= engines:
        return
    each = " and ".join(f"{amount:g} {name}{'' if amount == 1 else 's'}" for name, amount in needs.items())
    have = (
        "; ".join(f"{node.address} has {node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "it has no node"
    )
    raise CannotLaunch(
        f"the Ray cluster has room for {sum(seats.values())} of {engines} engines, each of which takes {each} of one node "
        f"({have}): start Ray on more nodes, or ask for fewer engines."
    )
