"""From a list of tiers to their stores, their books, and the transfer worker between them."""

import logging
from collections.abc import Callable, Sequence

from configs.model.source import ModelError
from configs.settings import Settings
from engine.kv_store.store import BlockStore, StoreLost, StoreRefused
from engine.kv_store.tiers import DeviceBlocks, TierEntry
from engine.kv_store.transfer import TransferWorker
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.eviction import eviction_of
from scheduler.kv.tiers.load_or_recompute import LoadOrRecompute
from scheduler.kv.tiers.tier_index import TierIndex
from scheduler.kv.tiers.transfer_planner import TransferPlanner

log = logging.getLogger("headrace.engine")


def open_tiers(
    tiers: Sequence[TierEntry],
    pool: BlockPool,
    device: DeviceBlocks,
    settings: Settings,
    wake: Callable[[], None],
) -> tuple[TransferPlanner, TransferWorker | None]:
    """Open these tiers.

    Args:
        tiers: fastest first.
        pool: the device's books.
        device: the blocks themselves.
        settings: for the policies.
        wake: called when a transfer has ended.

    Raises:
        ModelError: a store refuses: another server holds its folder, or the host's memory cannot be allocated.
    """
    stores, lost = dict[str, BlockStore](), list[str]()
    for tier in tiers:
        try:
            stores[tier.name] = tier.open(device)
        except StoreRefused as error:
            raise ModelError(str(error)) from error
        except StoreLost as error:
            log.warning("KV tier %s cannot be used, serving goes on without it: %s", tier.name, error)
            lost.append(tier.name)
    indices = [_index(tier, device.block_bytes, settings, stores.get(tier.name)) for tier in tiers]
    bandwidth = {tier.name: tier.bandwidth for tier in tiers}
    estimate = LoadOrRecompute(device.block_bytes, pool.block_size, pool.block_size, bandwidth)
    planner = TransferPlanner(pool, indices, estimate, settings.preemption, protect=settings.protect_kv)
    for name in lost:
        planner.tiers.mark_lost(name)
    return planner, TransferWorker(device.rows, stores, wake) if stores else None


def _index(tier: TierEntry, block_bytes: int, settings: Settings, store: BlockStore | None) -> TierIndex:
    content = tier.content_bytes(block_bytes)
    policy = eviction_of(settings.eviction, tier.capacity // content)
    survives = store is not None and store.capabilities.survives
    shared = store is not None and store.capabilities.shared
    read_only = store is not None and store.capabilities.read_only
    index = TierIndex(tier.name, tier.capacity, content, policy, survives=survives, shared=shared, read_only=read_only)
    if store is not None and survives:
        for block_key, size in store.kept():
            index.seed(block_key, size)
    return index
