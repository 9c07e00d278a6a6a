"""Whom to take the blocks from when a running request needs one and none is left. Preempted requests are recomputed."""

from collections.abc import Callable, Iterable

from scheduler.block_pool import BlockPool
from scheduler.request import Request


def choose_victim(
    running: Iterable[Request], needy: Request, pool: BlockPool, protected: Callable[[Request], bool]
) -> Request:
    """The running request to preempt: lowest priority, then least lost work, then the youngest.

    May be the needy one itself. Those that are `protected` hold all they can need and are left alone.
    """
    open_to = [request for request in running if not protected(request) and request.block_table]
    return min(open_to or [needy], key=lambda request: (-request.priority, lost_work(request, pool), -request.order))


def lost_work(request: Request, pool: BlockPool) -> int:
    """Computed tokens that nobody else keeps resident."""
    kept = sum(pool.shared(block_id) for block_id in request.block_table)
    return max(0, request.computed - kept * pool.block_size)
