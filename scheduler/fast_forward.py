"""Several decode steps in one go, for callers that know what the steps will bring: simulations.

While nobody arrives, ends or lacks a block, every plan is the last one with each sequence a token further. `steady_steps`
says for how many steps that is certain, `leap` makes of the books what so many rounds of `refresh`, `schedule` and `update`
would have made of them: same block ids, same published contents, same counters. A test compares the two field by field.

What belongs here: that equivalence, and nothing that decides. A rule that enters `Scheduler.schedule` must be mirrored in
`steady_steps` as a condition, so that where it could matter no leap is made.
"""

from collections.abc import Callable, Iterator, Mapping

from scheduler.kv.block_pool import BlockPool
from scheduler.kv.prefix_cache import PrefixCache
from scheduler.types.config import SchedulerConfig
from scheduler.types.request import Request
from scheduler.types.step import Step


def steady_steps(planned: Step, running: list[Request], config: SchedulerConfig, pool: BlockPool) -> int:
    """How many steps, `planned` the first of them, bring each running sequence one token and end none of them.

    Args:
        planned: the plan for the next step; the results of all steps before it are in.
        running: all of them, in the order of the plan; nobody else can be admitted.
        config: of the scheduler.
        pool: of the scheduler.

    Returns:
        At most the tokens of a block, so that each sequence fills and takes at most one; 0 where the plan is anything
        but one decode of each running sequence.
    """
    if pool.available < len(running) or planned.new:
        return 0
    if len(running) > config.max_step_tokens - config.max_step_tokens // 8 - 1:  # some may have to take turns
        return 0
    steps, previous = pool.block_size, (-(2**63), -1)
    for chunk, request in zip(planned.chunks, running, strict=True):
        known, place = len(request.tokens), (request.priority, request.arrival)
        if (
            not chunk.samples
            or chunk.length != 1
            or request.in_flight != 1
            or request.computed != known
            or place < previous
        ):
            return 0
        if request.times.first_token is None or request.sampling.stop_token_ids:
            return 0
        left = min(request.sampling.max_tokens - known + len(request.prompt_ids), config.context - known) - 1
        steps = min(steps, left)
        previous = place
    return max(steps, 0)


def all_running(step: Step, running: Mapping[str, Request]) -> list[Request]:
    """The running requests in the order of the step's chunks; none unless each has exactly one."""
    if len(step.chunks) != len(running):
        return []
    found = [running.get(chunk.request_id) for chunk in step.chunks]
    return [request for request in found if request is not None] if None not in found else []


def leap(
    planned: Step,
    steps: int,
    *,
    running: list[Request],
    pool: BlockPool,
    cache: PrefixCache,
    token_of: Callable[[str], int],
) -> tuple[Step, set[str]]:
    """Do `steps` rounds at once.

    Args:
        planned: as in `steady_steps`; used up.
        steps: from 1 to what `steady_steps` says.
        running: as in `steady_steps`.
        pool: changed.
        cache: changed.
        token_of: the id that each of these steps samples for a request; no EOS.

    Returns:
        The plan for the step after these, and the ids of requests that published a block in the last round.
    """
    known = [len(request.tokens) for request in running]
    for request in running:
        request.tokens += [token_of(request.request_id)] * steps
        request.computed += steps
        request.last_step = planned.step_id + steps
    last = set[str]()
    for round_, fills, place in sorted(_block_events(running, known, steps, pool.block_size)):
        request = running[place]
        if not fills:
            request.block_table += pool.allocate(1, request.block_table[-1])
        elif cache.publish(request) and round_ == steps:
            last.add(request.request_id)
    for chunk, request in zip(planned.chunks, running, strict=True):
        chunk.start += steps
        chunk.block_table = list(request.block_table)
    return Step(step_id=planned.step_id + steps, chunks=planned.chunks), last


def _block_events(
    running: list[Request], known: list[int], steps: int, block_size: int
) -> Iterator[tuple[int, bool, int]]:
    """(round, whether a block is filled rather than taken, place of the request).

    In one round the blocks that the plan needs are taken first, then those that the results fill are published.
    """
    for place, (request, tokens) in enumerate(zip(running, known, strict=True)):
        takes = len(request.block_table) * block_size - tokens + 1  # the round whose plan lacks a block
        if takes <= steps:
            yield takes, False, place
        fills = block_size - tokens % block_size  # the round whose token makes the block full
        if fills <= steps:
            yield fills, True, place
