"""The keeper's tiers in an engine's list. No torch until they are opened."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.settings import Settings
from engine.ipc.keeper_address import KeeperAddress
from engine.ipc.peer_list import PeerPass
from engine.ipc.share import own_share
from engine.keeper.client import KeeperClient
from engine.keeper.messages import Hello
from engine.keeper.peers.tier import PeerTier
from engine.kv_store.disk.record import size_of
from engine.kv_store.store import StoreLost
from engine.kv_store.tiers import GIB, DeviceBlocks, TierEntry

if TYPE_CHECKING:
    from engine.keeper.slab import SharedSlab
    from engine.kv_store.store import BlockStore

_ATTEMPTS = 5  # to say hello to a keeper that dies meanwhile
_PAUSE = 0.5


class KeeperLink:
    """What the tiers of one engine share: made when the first of them is opened.

    Args:
        address: of the keeper.
    """

    def __init__(self, address: KeeperAddress) -> None:
        self._address = address
        self._slab: SharedSlab | None = None
        self._lost: StoreLost | None = None

    def slab(self, device: DeviceBlocks) -> "SharedSlab":
        """Connect, and map the memory; pinned if the device is a GPU.

        Raises:
            StoreLost: the keeper is not there, or has blocks of another kind.
            StoreRefused: it refuses for good, or the memory cannot be mapped or pinned.
        """
        if self._lost is not None:
            raise self._lost
        if self._slab is None:
            try:
                self._slab = self._opened(device)
            except StoreLost as error:
                self._lost = error
                raise
        return self._slab

    def _opened(self, device: DeviceBlocks) -> "SharedSlab":
        from engine.keeper.slab import SharedSlab

        client = KeeperClient(self._address, hello_of(device))
        for attempt in range(_ATTEMPTS):
            try:
                return SharedSlab(client, device.block_bytes, pinned=device.rows.is_cuda)
            except StoreLost as error:
                if attempt == _ATTEMPTS - 1 or not isinstance(error.__cause__, EOFError | ConnectionError):
                    client.close()
                    raise
                time.sleep(_PAUSE)
            except BaseException:
                client.close()
                raise
        raise AssertionError("unreachable")


class KeptHostTier(TierEntry):
    """The machine's host tier, of which each engine's memory plan leaves its part free.

    Args:
        link: to the keeper.
        capacity: bytes, of all engines together.
        engines: how many there are.
    """

    name = "host"
    bandwidth = 4e9
    sized_by = "--kv-host-gib"

    def __init__(self, link: KeeperLink, capacity: int, engines: int) -> None:
        self.capacity = capacity
        self.host_bytes = capacity // engines
        self._link = link

    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Connect, unless that was done."""
        from engine.keeper.host import KeptHost

        return KeptHost(self._link.slab(device))


class KeptDiskTier(TierEntry):
    """The machine's folder on disk.

    Args:
        link: to the keeper.
        capacity: bytes, of all engines together.
    """

    name = "disk"
    bandwidth = 4e8

    def __init__(self, link: KeeperLink, capacity: int) -> None:
        self.capacity = capacity
        self._link = link

    def content_bytes(self, block_bytes: int) -> int:
        """A block and its head, in whole pages."""
        return size_of(block_bytes)

    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Connect, unless that was done, and ask whether the keeper has the folder."""
        from engine.keeper.disk import KeptDisk

        disk = KeptDisk(self._link.slab(device))
        try:
            disk.check()
        except BaseException:
            disk.close()
            raise
        return disk


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


def kept_tiers(settings: Settings, address: KeeperAddress, peers: PeerPass | None = None) -> Sequence[TierEntry]:
    """The tiers that the settings ask for, fastest first, where a keeper has them; last what keepers of other machines have."""
    link, tiers, share = KeeperLink(address), list[TierEntry](), own_share()
    if settings.kv_host_gib:
        engines = settings.engines if share is None else share.engines  # of this machine
        tiers.append(KeptHostTier(link, int(settings.kv_host_gib * GIB), engines))
    if settings.kv_disk_path is not None:
        tiers.append(KeptDiskTier(link, int(settings.kv_disk_gib * GIB)))
    if peers is not None and settings.kv_host_gib:
        remembered = int(settings.kv_host_gib * GIB) * settings.engines
        tiers.append(PeerTier(peers, remembered, by_nixl=settings.kv_transfer == "nixl"))
    return tiers
