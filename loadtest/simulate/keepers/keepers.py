"""The keepers of a pool's nodes. A node has one, whose contents all replicas there find at once.

The books are the scheduler's own (`TierIndex`), one for each node. What is loaded, computed or saved is decided by each replica's
own `TransferPlanner`, as in an engine; the seconds are the carrier's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.simulate.keepers.peers import PEER, Directory, OtherKeepers
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.router.block_index import BlockIndex, HeldBlocks
from scheduler.types.transfers import TierChanges, Transfer

HOST = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperShape:
    """What each node keeps.

    Attributes:
        bytes: of KV.
        reach: whether replicas load from the keepers of other nodes too.
        rates: bytes per second of a replica to and from `host`, and from `peer`.
    """

    bytes: float
    reach: bool
    rates: dict[str, float]


class PoolKeepers:
    """Of all nodes.

    Args:
        shape: of each.
        nodes: the node of each replica.
        block_bytes: of a block of KV.
    """

    def __init__(self, shape: KeeperShape, nodes: Sequence[int], block_bytes: int) -> None:
        self._shape = shape
        self._nodes = nodes
        self._block_bytes = block_bytes
        self._directory = Directory()
        blocks = int(shape.bytes // block_bytes)
        self.indices = [
            TierIndex(HOST, int(shape.bytes), block_bytes, eviction_of("lru", blocks), shared=True)
            for _ in range(max(nodes) + 1)
        ]
        for node, index in enumerate(self.indices):
            index.publish_to(self._directory.journal(node))
        self._peers = [OtherKeepers(node, self.indices, self._directory) for node in nodes] if self._many else []

    @property
    def _many(self) -> bool:
        return self._shape.reach and len(self.indices) > 1

    def tiers(self, replica: int) -> list[TierIndex]:
        """What lies below a replica, the nearest first."""
        tiers: list[TierIndex] = [self.indices[self._nodes[replica]]]
        return tiers + ([self._peers[replica]] if self._many else [])

    def planner(self, replica: int, pool: BlockPool) -> TransferPlanner:
        """Of a replica's transfers, which starts with nothing under way."""
        estimate = LoadOrRecompute(self._block_bytes, pool.block_size, pool.block_size, self._shape.rates)
        return TransferPlanner(pool, self.tiers(replica), estimate)

    def seconds(self, transfer: Transfer) -> float:
        """How long it takes."""
        return len(transfer.block_keys) * self._block_bytes / self._shape.rates[transfer.lower]

    def sizes(self, replica: int, transfer: Transfer) -> list[int]:
        """What arrived of it, now that it has ended: a node that was lost meanwhile gives nothing."""
        if transfer.source != PEER:
            return [self._block_bytes] * len(transfer.block_keys)
        return [self._block_bytes * self._peers[replica].arrives(key) for key in transfer.hashes]

    def block_index(self, replica: int) -> BlockIndex:
        """What a router knows of a replica and of what lies below it."""
        return KeptBlocks(self.tiers(replica))

    def lose(self, node: int) -> None:
        """A node is lost with what it kept. Nothing is under way from or to its own replicas."""
        index = self.indices[node]
        index.follow(TierChanges([], list(index.contents())))


class KeptBlocks(BlockIndex):
    """What a replica has on its device, as it tells; and in tiers, as their books say, which all replicas of a node share."""

    def __init__(self, tiers: Sequence[TierIndex]) -> None:
        super().__init__()
        self._below = tiers

    def held(self, names: Sequence[bytes]) -> HeldBlocks:
        """How much of a prompt is there."""
        found = super().held(names).device
        tiers: list[str] = []
        for name in names[found:]:
            tier = next((tier.name for tier in self._below if tier.readable(name)), None)
            if tier is None:
                break
            tiers.append(tier)
        return HeldBlocks(found, tuple(tiers))
