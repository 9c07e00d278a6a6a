"""Several decode steps in one go, for callers that know what the steps will bring: simulations.

While no request arrives, ends or lacks a block, every plan is the last one with each sequence one token further. `steady_steps`
says for how many steps that is certain; `run` brings the books to the state in which that many rounds of `refresh`, `schedule`
and `update` would leave them: same block ids, same published contents, same counters. A test compares the two field by field.

What belongs here: that equivalence, and nothing that decides. A rule that is added to `Scheduler.schedule` must be mirrored
in `steady_steps` as a condition, so that no step is skipped in which it could matter.
"""

from collections.abc import Callable, Iterator

from scheduler.skipping.parts import SchedulerParts
from scheduler.skipping.steady_decodes import SteadyDecodes
from scheduler.token_budget import decode_room
from scheduler.types.request import Request
from scheduler.types.step import Chunk, ChunkPhase, Step


class FastForward:
    """Skips steps of one scheduler.

    Args:
        parts: of the scheduler.
        steady: sequences without chunks; where there are any, they know what can be skipped.
        grow: gives one of these the block that it lacks.
    """

    def __init__(self, parts: SchedulerParts, steady: SteadyDecodes, grow: Callable[[Request], None]) -> None:
        self._config = parts.config
        self._pool = parts.pool
        self._table = parts.table
        self._cache = parts.cache
        self._transfers = parts.transfers
        self._policy = parts.policy
        self._drafting = parts.drafting
        self._chunks = parts.chunks
        self._stats = parts.stats
        self._steady = steady
        self._grow = grow

    def steady_steps(self, planned: Step) -> int:
        """The number of steps, beginning with `planned`, that bring each running sequence one token and end none of them.

        Args:
            planned: the plan for the next step; the results of all steps before it are in.

        Returns:
            At most the tokens of a block, so that each sequence fills and takes at most one block; 0 if the plan is
            anything but one decode of each running sequence.
        """
        if len(self._steady):
            return self._steady.steady_steps(planned)
        running = self._all_running(planned)
        if not running or planned.new or self._may_change(running):
            return 0
        steps, previous = self._pool.block_size, (-(2**63), -1)
        for chunk, request in zip(planned.chunks, running, strict=True):
            place = (request.priority, request.arrival)
            if place < previous or not _is_steady(chunk, request):
                return 0
            known, output = len(request.tokens), len(request.tokens) - len(request.prompt_ids)
            steps = min(steps, min(request.output_limit - output, self._config.context - known) - 1)
            previous = place
        return max(steps, 0)

    def run(self, planned: Step, steps: int, token_of: Callable[[str], int]) -> Step:
        """Do `steps` rounds at once; returns the plan for the step after them, without its `retired`.

        Args:
            planned: as in `steady_steps`; not to be used afterwards.
            steps: from 1 to what `steady_steps` says.
            token_of: the token id that each of these steps samples for a request; not EOS.
        """
        if len(self._steady):
            return self._steady.leap(planned, steps, self._grow)
        running = self._all_running(planned)
        known = [len(request.tokens) for request in running]
        for request in running:
            request.tokens += [token_of(request.request_id)] * steps
            request.computed += steps
            request.last_step = planned.step_id + steps
        self._change_blocks(running, known, steps)
        for chunk, request in zip(planned.chunks, running, strict=True):
            chunk.start += steps
            chunk.block_table = list(request.block_table)
            self._chunks.count(request, request.computed - steps)
        self._stats.steps += steps
        self._stats.generation_tokens += steps * len(running)
        after = self._steady.step(planned.step_id + steps)
        after.chunks = planned.chunks
        return after

    def _may_change(self, running: list[Request]) -> bool:
        """Whether a step could differ from the one before for reasons that its chunks do not show."""
        line, budget = self._table.waiting, self._config.max_step_tokens
        takes_turns = len(running) > decode_room(budget, prompts=True)
        could_admit = bool(line) and len(running) < self._config.max_running
        return (
            not self._transfers.steady(running)
            or self._drafting.active
            or takes_turns
            or any(request.idle for request in running)
            or could_admit
            or self._pool.available < len(running)
            or not self._policy.is_stable(line, self._table.running.values())
        )

    def _all_running(self, step: Step) -> list[Request]:
        """The running requests in the order of the step's chunks; none unless each has exactly one chunk."""
        if len(step.chunks) != len(self._table.running):
            return []
        found = [self._table.running.get(chunk.request_id) for chunk in step.chunks]
        return [request for request in found if request is not None] if None not in found else []

    def _change_blocks(self, running: list[Request], known: list[int], steps: int) -> None:
        """Take and publish blocks in the order in which the rounds would."""
        published = self._chunks.published_by
        published.clear()
        for round_, fills, place in sorted(_block_events(running, known, steps, self._pool.block_size)):
            request = running[place]
            if not fills:
                request.block_table += self._pool.allocate(1, request.block_table[-1])
            elif self._cache.publish(request) and round_ == steps:
                published.add(request.request_id)


def _is_steady(chunk: Chunk, request: Request) -> bool:
    """Whether the chunk is a plain decode of a request that only `max_tokens` or the context will end."""
    return (
        chunk.phase is ChunkPhase.DECODE
        and chunk.samples == 1
        and request.in_flight == 1
        and request.computed == len(request.tokens)
        and request.times.first_token is not None
        and not request.sampling.stop_token_ids
    )


def _block_events(
    running: list[Request], known: list[int], steps: int, block_size: int
) -> Iterator[tuple[int, bool, int]]:
    """(round, whether a block is filled rather than taken, index of the request).

    In one round, the blocks that the plan needs are taken first, then those that the results fill are published.
    """
    for place, (request, tokens) in enumerate(zip(running, known, strict=True)):
        takes = len(request.block_table) * block_size - tokens + 1  # the round whose plan lacks a block
        if takes <= steps:
            yield takes, False, place
        fills = block_size - tokens % block_size  # the round whose token makes the block full
        if fills <= steps:
            yield fills, True, place
