"""From settings to tiers: which stores there are, their books, and the transfer worker between them."""

import logging
import time
from collections.abc import Callable
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
from scheduler.kv.load_or_recompute import LoadOrRecompute
from scheduler.kv.tier_index import TierIndex
from scheduler.kv.transfer_planner import TransferPlanner
from scheduler.types.messages import TierStats
from scheduler.types.transfers import Tier

log = logging.getLogger("headrace.engine")
GIB = 2**30
_DISK_THREADS = 4


def open_tiers(
    settings: Settings,
    pool: BlockPool,
    rows: Tensor,
    *,
    fingerprint: str,
    element_bytes: int,
    wake: Callable[[], None],
) -> tuple[TransferPlanner, TransferWorker | None]:
    """Open what the settings ask for.

    Args:
        settings: sizes, folder, policies.
        pool: the device's books.
        rows: the device's blocks as bytes, uint8 [blocks, block bytes].
        fingerprint: of model and KV format.
        element_bytes: of a key's or value's number, for the codec.
        wake: called when a transfer has ended.

    Raises:
        ModelError: the folder is another server's, or the host's memory cannot be had.
    """
    block_bytes, limit = rows.shape[1], int(settings.kv_disk_gib * GIB)
    stores, indices = dict[Tier, BlockStore](), dict[Tier, TierIndex]()
    lost = False
    try:
        if settings.kv_host_gib:
            count = int(settings.kv_host_gib * GIB) // block_bytes
            stores[Tier.HOST] = HostStore(count, block_bytes, pinned=rows.is_cuda)
            indices[Tier.HOST] = _index(settings, Tier.HOST, count * block_bytes, block_bytes)
        if settings.kv_disk_path is not None:
            codec = TimedCodec(PlanesCodec(element_bytes), time.perf_counter)
            disk = DiskStore(
                Path(settings.kv_disk_path),
                block_bytes=block_bytes,
                fingerprint=fingerprint,
                limit_bytes=limit,
                codecs=[codec],
                depth=_DISK_THREADS,
            )
            stores[Tier.DISK] = CodedDisk(disk, codec, _DISK_THREADS)
            indices[Tier.DISK] = _index(settings, Tier.DISK, limit, size_of(block_bytes))
            for block_key, size in disk.kept():
                indices[Tier.DISK].seed(block_key, size)
    except StoreRefused as error:
        raise ModelError(str(error)) from error
    except StoreLost as error:
        log.warning("KV tier disk cannot be used, serving goes on without it: %s", error)
        lost = True
    estimate = LoadOrRecompute(block_bytes, pool.block_size, telling_tokens=pool.block_size)
    tiers = TransferPlanner(pool, indices, estimate, settings.preemption)
    if lost:
        tiers.stats[Tier.DISK] = TierStats(up=False)
    return tiers, TransferWorker(rows, stores, wake) if stores else None


def _index(settings: Settings, tier: Tier, capacity: int, block_bytes: int) -> TierIndex:
    return TierIndex(tier, capacity, block_bytes, eviction_of(settings.eviction, capacity // block_bytes))
