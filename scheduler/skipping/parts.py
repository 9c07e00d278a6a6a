"""The parts of a scheduler that whoever skips steps brings up to date."""

from dataclasses import dataclass

from scheduler.chunks import ChunkBuilder
from scheduler.drafting import Drafting
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.policies.base import SchedulingPolicy
from scheduler.request_table import RequestTable
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import EngineStats


@dataclass(frozen=True, slots=True)
class SchedulerParts:
    """Those of one scheduler."""

    config: SchedulerConfig
    pool: BlockPool
    table: RequestTable
    cache: PrefixCache
    transfers: TransferPlanner
    policy: SchedulingPolicy
    drafting: Drafting
    chunks: ChunkBuilder
    stats: EngineStats
