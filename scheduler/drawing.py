"""A scheduler at one moment, for people who watch: its requests as rows, its blocks as squares, its tiers.

What belongs here: reading. Nothing here changes anything, and nothing else knows of it.
"""

from collections.abc import Iterator
from itertools import chain, islice
from typing import Literal

from scheduler.kv.block_cells import draw_blocks
from scheduler.kv.block_pool import BlockPool
from scheduler.kv.tiers.transfer_planner import TransferPlanner
from scheduler.request_table import RequestTable
from scheduler.types.engine_map import MOST_REQUESTS, EngineMap, MapRequest, MapTier, short_name
from scheduler.types.messages import EngineStats
from scheduler.types.request import Request, RequestState
from scheduler.types.transfers import DEVICE, Transfer

_MOST_NAME = 64  # characters of a tenant's


def draw_map(
    table: RequestTable, pool: BlockPool, transfers: TransferPlanner, stats: EngineStats, now: float
) -> EngineMap:
    """Everything, as it is between two calls of the scheduler.

    Args:
        table: the requests.
        pool: the device's.
        transfers: those in flight, and the tiers.
        stats: with gauges that are up to date.
        now: on the clock of the requests' times.
    """
    requests = list(islice(chain(table.running.values(), table.waiting), MOST_REQUESTS))
    moves = transfers.moves
    return EngineMap(
        at=now,
        block_size=pool.block_size,
        used=stats.blocks_used,
        cached=stats.blocks_cached,
        free=stats.blocks_free,
        running=stats.running,
        waiting=stats.waiting,
        cells=draw_blocks(
            pool,
            (request.block_table for request in requests),
            saving=(block for move in moves if move.source == DEVICE for block in move.blocks),
            loading=(block for move in moves if move.target == DEVICE for block in move.blocks),
        ),
        requests=[_row(request) for request in requests],
        tiers=list(_tiers(transfers, stats, moves)),
    )


def _row(request: Request) -> MapRequest:
    return MapRequest(
        name=short_name(request.request_id),
        tenant=request.tenant[:_MOST_NAME],
        state=_state(request),
        queued=request.times.queued,
        prompt=len(request.prompt_ids),
        output=len(request.tokens) - len(request.prompt_ids),
        most_output=request.output_limit,
        computed=request.computed,
        cached=request.times.cached_tokens,
        blocks=len(request.block_table),
        full=request.published,
        preemptions=request.preemptions,
    )


def _state(request: Request) -> Literal["waiting", "preempted", "loading", "prefill", "decode"]:
    if request.state is RequestState.WAITING:
        return "preempted" if request.started else "waiting"
    if request.loading:
        return "loading"
    written = len(request.tokens) > len(request.prompt_ids)  # `computed` is ahead by the step that runs
    return "decode" if written and not request.prefilling else "prefill"


def _tiers(transfers: TransferPlanner, stats: EngineStats, moves: list[Transfer]) -> Iterator[MapTier]:
    for name, tier in stats.tiers.items():
        books = transfers.tiers.get(name)
        yield MapTier(
            name=name,
            up=tier.up,
            blocks=tier.blocks,
            bytes=tier.bytes,
            capacity=books.capacity if books is not None else 0,
            shared=books is not None and books.shared,
            loading=sum(len(move.block_keys) for move in moves if move.source == name and move.target == DEVICE),
            saving=sum(len(move.block_keys) for move in moves if move.target == name),
        )
