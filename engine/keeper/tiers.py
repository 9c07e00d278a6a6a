"""The keeper's tiers in an engine's list. No torch until they are opened."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.settings import Settings
from engine.ipc.keeper_address import KeeperAddress
from engine.keeper.client import KeeperClient
from engine.keeper.messages import Hello
from engine.kv_store.tiers import GIB, DeviceBlocks, TierEntry

if TYPE_CHECKING:
    from engine.kv_store.store import BlockStore


class KeptHostTier(TierEntry):
    """The machine's host tier, of which each engine's memory plan leaves its part free.

    Args:
        address: of the keeper.
        capacity: bytes, of all engines together.
        engines: how many there are.
    """

    name = "host"
    bandwidth = 4e9
    sized_by = "--kv-host-gib"

    def __init__(self, address: KeeperAddress, capacity: int, engines: int) -> None:
        self.capacity = capacity
        self.host_bytes = capacity // engines
        self._address = address

    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Connect, and map the memory; pinned if the device is a GPU."""
        from engine.keeper.host import KeptHost, SharedSlab

        client = KeeperClient(self._address, hello_of(device))
        try:
            return KeptHost(client, SharedSlab(client, device.block_bytes, pinned=device.rows.is_cuda))
        except BaseException:
            client.close()
            raise


def hello_of(device: DeviceBlocks) -> Hello:
    """What an engine with these blocks says of them."""
    return Hello(
        pid=0,
        client=0,
        fingerprint=device.fingerprint,
        block_bytes=device.block_bytes,
        block_tokens=device.block_tokens,
        element_bytes=device.element_bytes,
        fresh=False,
    )


def kept_tiers(settings: Settings, address: KeeperAddress) -> Sequence[TierEntry]:
    """The tiers that the settings ask for, fastest first, where a keeper has them."""
    tiers = list[TierEntry]()
    if settings.kv_host_gib:
        tiers.append(KeptHostTier(address, int(settings.kv_host_gib * GIB), settings.engines))
    return tiers
