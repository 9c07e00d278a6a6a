"""From settings to tiers: which stores there are, their books, and the transfer worker between them.

Another tier is one more entry in `_entries`: its name, how it is opened, and the speed it is assumed to have until a load has been
measured. Neither the planner nor the transfer worker knows a tier by name.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from configs.model.source import ModelError
from configs.settings import Settings
from engine.kv_store.codec import PlanesCodec
from engine.kv_store.coded_disk import CodedDisk, TimedCodec
from engine.kv_store.disk import DiskStore
from engine.kv_store.host import HostStore
from engine.kv_store.record import size_of
from engine.kv_store.store import BlockStore, StoreLost, StoreRefused
from engine.kv_store.transfer import TransferWorker
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner

log = logging.getLogger("headrace.engine")
GIB = 2**30
_DISK_THREADS = 4


@dataclass(frozen=True, slots=True)
class TierEntry:
    """A tier that the settings ask for.

    Attributes:
        name: in flags, metrics and log lines.
        capacity: bytes it may hold.
        block_bytes: bytes of one content there, at most.
        bandwidth: bytes per second that it is assumed to give until a load has been measured; a low figure for such a device.
        open: opens the store; raises StoreRefused or StoreLost.
    """

    name: str
    capacity: int
    block_bytes: int
    bandwidth: float
    open: Callable[[], BlockStore]


def open_tiers(
    settings: Settings,
    pool: BlockPool,
    rows: Tensor,
    *,
    fingerprint: str,
    element_bytes: int,
    wake: Callable[[], None],
) -> tuple[TransferPlanner, TransferWorker | None]:
    """Open the stores that the settings ask for.

    Args:
        settings: sizes, folder, policies.
        pool: the device's books.
        rows: the device's blocks as bytes, uint8 [blocks, block bytes].
        fingerprint: of model and KV format.
        element_bytes: bytes of one number of a key or value, for the codec.
        wake: called when a transfer has ended.

    Raises:
        ModelError: another server holds the folder, the host's memory cannot be allocated, or prefix caching is off.
    """
    entries = list(_entries(settings, rows, fingerprint, element_bytes))
    if not pool.caching and entries:
        raise ModelError(
            "--kv-host-gib and --kv-disk-path keep KV by its content: they do nothing with --no-prefix-caching"
        )
    stores, lost = dict[str, BlockStore](), list[str]()
    for entry in entries:
        try:
            stores[entry.name] = entry.open()
        except StoreRefused as error:
            raise ModelError(str(error)) from error
        except StoreLost as error:
            log.warning("KV tier %s cannot be used, serving goes on without it: %s", entry.name, error)
            lost.append(entry.name)
    indices = [_index(settings, entry) for entry in entries]
    for index in indices:
        if index.name in stores and stores[index.name].capabilities.survives:
            for block_key, size in stores[index.name].kept():
                index.seed(block_key, size)
    bandwidth = {entry.name: entry.bandwidth for entry in entries}
    estimate = LoadOrRecompute(rows.shape[1], pool.block_size, pool.block_size, bandwidth)
    planner = TransferPlanner(pool, indices, estimate, settings.preemption)
    for name in lost:
        planner.tiers.mark_lost(name)
    return planner, TransferWorker(rows, stores, wake) if stores else None


def _entries(settings: Settings, rows: Tensor, fingerprint: str, element_bytes: int) -> Iterator[TierEntry]:
    """The tiers below the device, fastest first."""
    block_bytes = rows.shape[1]
    if settings.kv_host_gib:
        blocks = int(settings.kv_host_gib * GIB) // block_bytes
        yield TierEntry(
            "host",
            blocks * block_bytes,
            block_bytes,
            4e9,
            lambda: HostStore(blocks, block_bytes, pinned=rows.is_cuda),
        )
    if settings.kv_disk_path is not None:
        folder, limit = Path(settings.kv_disk_path), int(settings.kv_disk_gib * GIB)
        yield TierEntry(
            "disk",
            limit,
            size_of(block_bytes),
            4e8,
            lambda: _open_disk(folder, block_bytes, fingerprint, limit, element_bytes),
        )


def _open_disk(folder: Path, block_bytes: int, fingerprint: str, limit: int, element_bytes: int) -> CodedDisk:
    codec = TimedCodec(PlanesCodec(element_bytes), time.perf_counter)
    disk = DiskStore(
        folder,
        block_bytes=block_bytes,
        fingerprint=fingerprint,
        limit_bytes=limit,
        codecs=[codec],
        depth=_DISK_THREADS,
    )
    return CodedDisk(disk, codec, _DISK_THREADS)


def _index(settings: Settings, tier: TierEntry) -> TierIndex:
    policy = eviction_of(settings.eviction, tier.capacity // tier.block_bytes)
    return TierIndex(tier.name, tier.capacity, tier.block_bytes, policy)
