"""Other machines' memory in an engine's list of tiers. No torch until it is opened."""

from typing import TYPE_CHECKING

from engine.ipc.peer_list import PeerPass
from engine.keeper.peers.messages import Visit
from engine.kv_store.tiers import DeviceBlocks, TierEntry

if TYPE_CHECKING:
    from engine.kv_store.store import BlockStore


class PeerTier(TierEntry):
    """What the keepers of other machines have in memory; none of this machine's.

    Args:
        own: says who the others are.
        capacity: bytes of theirs that are remembered here.
        by_nixl: whether NIXL reads there, instead of the blocks being sent.
    """

    name = "peer"
    bandwidth = 4e8

    def __init__(self, own: PeerPass, capacity: int, *, by_nixl: bool) -> None:
        self.capacity = capacity
        self._own, self._by_nixl = own, by_nixl

    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Begin to follow them; whoever is not there has nothing yet."""
        visit = Visit(fingerprint=device.fingerprint, block_bytes=device.block_bytes, follows=True)
        if self._by_nixl:
            from engine.keeper.peers.nixl_store import NixlPeerStore

            return NixlPeerStore(self._own, visit)
        from engine.keeper.peers.store import PeerStore

        return PeerStore(self._own, visit)
