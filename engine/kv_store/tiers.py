"""The tiers below a device, before they are opened: what each is called, how much it holds, what memory it asks for. No torch.

A further tier is one more `TierEntry`, from here or from elsewhere: start, memory plans, planner and transfer worker take a list
and know none of them by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.settings import Settings
from engine.kv_store.disk.record import size_of

if TYPE_CHECKING:
    from torch import Tensor

    from engine.kv_store.store import BlockStore

GIB = 2**30


@dataclass(frozen=True, slots=True)
class DeviceBlocks:
    """The blocks of a device, of which tiers keep copies.

    Attributes:
        rows: as bytes, uint8 [blocks, block bytes].
        element_bytes: bytes of one number of a key or value.
        block_tokens: tokens of a block.
        fingerprint: of model, KV format and block size. What was kept under another one is of no use here.
    """

    rows: "Tensor"
    element_bytes: int
    block_tokens: int
    fingerprint: str

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.rows.shape[1]


class TierEntry(ABC):
    """A tier that a server shall have.

    Attributes:
        name: in metrics and log lines; no other tier's.
        capacity: bytes it may hold.
        bandwidth: bytes per second that it is assumed to give until a load has been measured; a low figure for such a device.
        host_bytes: how much of the host's memory it takes when it is full; a plan of that memory leaves it free.
        sized_by: the flag to lower where that is too much.
    """

    name: str
    capacity: int
    bandwidth: float
    host_bytes: int = 0
    sized_by: str = ""

    def content_bytes(self, block_bytes: int) -> int:
        """Bytes that one block takes there, at most."""
        return block_bytes

    @abstractmethod
    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Open the store.

        Raises:
            StoreRefused: the server must not start like this; the sentence says why and what to do.
            StoreLost: the tier cannot be used, and the server goes on without it.
        """


class HostTier(TierEntry):
    """The host's memory."""

    name = "host"
    bandwidth = 4e9
    sized_by = "--kv-host-gib"

    def __init__(self, capacity: int) -> None:
        self.capacity = self.host_bytes = capacity

    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Reserve the memory; pinned if the device is a GPU."""
        from engine.kv_store.host import HostStore

        return HostStore(self.capacity // device.block_bytes, device.block_bytes, pinned=device.rows.is_cuda)


class DiskTier(TierEntry):
    """A folder on disk."""

    name = "disk"
    bandwidth = 4e8

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder, self.capacity = folder, capacity

    def content_bytes(self, block_bytes: int) -> int:
        """A block and its head, in whole pages."""
        return size_of(block_bytes)

    def open(self, device: DeviceBlocks) -> "BlockStore":
        """Take the folder, and read what an earlier process left there."""
        from engine.kv_store.disk.opening import open_disk

        return open_disk(self.folder, self.capacity, device.block_bytes, device.element_bytes, device.fingerprint)


def tiers_of(settings: Settings) -> Sequence[TierEntry]:
    """The tiers that the settings ask for, fastest first."""
    tiers = list[TierEntry]()
    if settings.kv_host_gib:
        tiers.append(HostTier(int(settings.kv_host_gib * GIB)))
    if settings.kv_disk_path is not None:
        tiers.append(DiskTier(Path(settings.kv_disk_path), int(settings.kv_disk_gib * GIB)))
    return tiers
