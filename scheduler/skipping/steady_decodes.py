"""Sequences that do nothing but decode, carried along without chunks: for simulations, where most rows of most steps are such.

What a plan and a result change of a *steady* sequence is the same in each step, so it is written down only when somebody looks:
`settle`. Until then its fields are those of an earlier step, all of the same one.

    joins     after a plan in which it decodes, if that was not its last step but one
    takes     a block, in the plan that lacks one: at once, in its place among the other decodes
    fills     a block, which gets its key with the step's results: likewise. Where its caller gave its names, nobody else asks for
              what its answer fills, and blocks get their keys when somebody looks
    leaves    before the plan of its last step, and whenever a plan might treat it differently. Its rows in steps without results
              become chunks again, so from there on it is a request like any other

A step says how many rows it carries (`SteadyStep`). What such steps bring is what the plain ones bring: a test compares the two.
What belongs here: that equivalence. Never: anything that decides. A rule that is added to `Scheduler.schedule` and that looks at
sequences that decode must look at `settled` ones, or stand in `_may_differ`.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from operator import attrgetter

from scheduler.skipping.parts import SchedulerParts
from scheduler.token_budget import decode_room
from scheduler.types.request import Request
from scheduler.types.step import Chunk, ChunkPhase, ChunkResult, Step, StepWork

_place_of = attrgetter("place")
Sampled = Callable[[str, range], list[int]]  # of a request: the ids that steps sampled for it

_SHORTEST = 3  # steps; for fewer a sequence does not join


@dataclass(slots=True, kw_only=True)
class SteadyStep(Step):
    """A step with rows that have no chunk: each computes its sequence's newest token and samples the next.

    Attributes:
        rows: how many.
        keys: that they read.
    """

    rows: int = 0
    keys: int = 0

    @property
    def tokens(self) -> int:
        """Tokens computed by this step."""
        return sum(chunk.length for chunk in self.chunks) + self.rows

    def work(self) -> StepWork:
        """How much it computes."""
        work = Step.work(self)
        work.decodes += self.rows
        work.decode_keys += self.keys
        return work


@dataclass(slots=True, eq=False)
class _Row:
    """A steady sequence, and the ids of steps that concern it."""

    request: Request
    joined: int  # it has a row from the step after this one on
    planned: int  # the newest step that `computed` and `in_flight` count
    absorbed: int  # the newest step whose token is in `tokens`; `joined` at first
    last: int  # in which it decodes
    fills: int  # whose token fills one
    place: tuple[int, int]  # among the decodes of a step; nobody's changes while it is steady


class SteadyDecodes:
    """The steady sequences of one scheduler, whose parts it is given. There are none before `carry`."""

    def __init__(self, parts: SchedulerParts) -> None:
        self._config = parts.config
        self._pool = parts.pool
        self._table = parts.table
        self._cache = parts.cache
        self._transfers = parts.transfers
        self._policy = parts.policy
        self._drafting = parts.drafting
        self._chunks = parts.chunks
        self._stats = parts.stats
        self._sampled: Sampled | None = None
        self._rows: dict[str, _Row] = {}
        self._keys = 0  # that they read in the newest plan
        self._planned = self._absorbed = -1  # the newest steps that are
        self._open: deque[SteadyStep] = deque()  # planned, without results
        self._taking: dict[int, list[_Row]] = {}  # by the id of the step; some may have left
        self._filling: dict[int, list[_Row]] = {}
        self._ending: list[tuple[int, int, _Row]] = []  # a heap: last step, arrival

    def __len__(self) -> int:
        return len(self._rows)

    def carry(self, sampled: Sampled) -> None:
        """From now on sequences become steady. Their tokens are asked for when they are needed."""
        self._sampled = sampled

    # --- plans ---

    def step(self, step_id: int) -> Step:
        """An empty step, to be planned."""
        return Step(step_id=step_id, chunks=[]) if self._sampled is None else SteadyStep(step_id=step_id, chunks=[])

    def plan(self, step: Step) -> list[Request]:
        """The steady sequences get their rows. Returns those that lack a block for them, by their places."""
        if not self._rows:
            return []
        assert isinstance(step, SteadyStep)
        if self._may_differ(self.due(step.step_id) + len(self._table.moving)):
            self.dissolve()
            return []
        return self.rows(step)

    def due(self, step_id: int) -> int:
        """At most so many of them lack a block in the plan of this step."""
        return len(self._taking.get(step_id, ()))

    def rows(self, step: SteadyStep) -> list[Request]:
        """`plan`, for a caller who knows that no plan could treat them differently."""
        if not self._rows:
            return []
        while self._ending and self._ending[0][0] <= step.step_id:
            row = heappop(self._ending)[2]
            if self._stays(row):
                self._leave(row)
        self._keys += len(self._rows)
        step.rows, step.keys = len(self._rows), self._keys
        return self._lacking(step.step_id)

    def planned(self, step: Step, decodes: Iterable[Request]) -> None:
        """The plan is made. Those of these, which have a chunk in it, that will only decode from now on become steady."""
        if self._sampled is None:
            return
        assert isinstance(step, SteadyStep)
        self._planned = step.step_id
        if step.rows:
            self._open.append(step)
        joins = [request for request in decodes if self._is_steady(request)]
        if joins and not self._may_differ(0):
            for request in joins:
                self._join(request, step.step_id)

    def _may_differ(self, blocks: int) -> bool:
        """Whether a plan might give one of the decodes no row, or its blocks to another request, if they lack at most so many."""
        running, config = len(self._table.running), self._config
        return (
            self._policy.weighs_decodes
            or self._transfers.active
            or self._drafting.active
            or config.priority_aging > 0
            or self._table.idle_open > 0
            or running > decode_room(config.max_step_tokens, prompts=True)
            or self._pool.available < blocks
        )

    def _is_steady(self, request: Request) -> bool:
        left = request.output_limit - request.output_tokens
        sampling, eos = request.sampling, self._config.eos_token_ids
        ends = sampling.stop_token_ids or (eos and not sampling.ignore_eos)
        return left >= _SHORTEST and not ends and not request.forks

    def _join(self, request: Request, step_id: int) -> None:
        size = self._pool.block_size
        row = _Row(
            request,
            joined=step_id,
            planned=step_id,
            absorbed=step_id,
            last=step_id + request.output_limit - request.output_tokens,
            fills=step_id + size - request.known % size,
            place=_place(request),
        )
        self._rows[request.request_id] = row
        del self._table.moving[request.request_id]
        self._keys += request.computed
        heappush(self._ending, (row.last, request.arrival, row))
        takes = step_id + 1 + len(request.block_table) * size - request.computed  # the step whose plan lacks a block
        self._taking.setdefault(takes, []).append(row)
        if self._pool.caching and not request.names:
            self._filling.setdefault(row.fills, []).append(row)

    def _stays(self, row: _Row) -> bool:
        return self._rows.get(row.request.request_id) is row

    def _due(self, rows: Iterable[_Row]) -> list[_Row]:
        steady = self._rows
        due = [row for row in rows if steady.get(row.request.request_id) is row]
        if len(due) > 1:
            due.sort(key=_place_of)
        return due

    def _lacking(self, step_id: int) -> list[Request]:
        """Those that lack a block in this plan. They will have it, and lack the next one as many steps later as it has tokens."""
        taking = self._taking.pop(step_id, None)
        if taking is None:
            return []
        due, following = self._due(taking), step_id + self._pool.block_size
        self._taking.setdefault(following, []).extend(due)
        return [row.request for row in due]

    # --- results ---

    def absorb(self, step: Step, results: Sequence[ChunkResult]) -> Iterable[tuple[Chunk, ChunkResult]]:
        """The step's chunks with their results, each to be absorbed before the next is asked for; meanwhile blocks that steady
        sequences have filled get their keys, in their places."""
        if self._sampled is None:
            return zip(step.chunks, results, strict=True)
        assert isinstance(step, SteadyStep)
        return self._absorb(step, results)

    def _absorb(self, step: SteadyStep, results: Sequence[ChunkResult]) -> Iterator[tuple[Chunk, ChunkResult]]:
        self._absorbed = step.step_id
        self._stats.generation_tokens += step.rows
        while self._open and self._open[0].step_id <= step.step_id:
            self._open.popleft()
        due = deque(self._due(self._filling.pop(step.step_id, ())))
        for chunk, result in zip(step.chunks, results, strict=True):
            while due and self._precedes(due[0], chunk):
                self._fill(due.popleft())
            row = self._rows.get(chunk.request_id)
            if row is not None:  # it has joined since
                self._settle(row)
            yield chunk, result
        for row in due:
            self._fill(row)

    def _precedes(self, row: _Row, chunk: Chunk) -> bool:
        if chunk.phase is not ChunkPhase.DECODE:
            return True
        request = self._table.open.get(chunk.request_id)
        return request is not None and row.place < _place(request)

    def _fill(self, row: _Row) -> None:
        self._settle(row)
        if self._cache.publish(row.request):
            self._chunks.published_by.add(row.request.request_id)
        row.fills += self._pool.block_size
        self._filling.setdefault(row.fills, []).append(row)

    # --- as they would be ---

    def settle(self) -> None:
        """Bring all of them up to date."""
        for row in self._rows.values():
            self._catch_up(row)

    def _catch_up(self, row: _Row) -> None:
        self._settle(row)
        if row.request.names and self._cache.publish(row.request):
            self._chunks.published_by.add(row.request.request_id)

    def _settle(self, row: _Row) -> None:
        request, steps, results = row.request, self._planned - row.planned, self._absorbed - row.absorbed
        if steps:
            before = request.computed
            request.computed += steps
            request.in_flight += steps
            request.last_step = row.planned = self._planned
            self._chunks.count(request, before)
        if results > 0:
            assert self._sampled is not None
            request.tokens += self._sampled(request.request_id, range(row.absorbed + 1, self._absorbed + 1))
            request.in_flight -= results
            row.absorbed = self._absorbed

    def dissolve(self) -> None:
        """All of them leave."""
        for row in list(self._rows.values()):
            self._leave(row)
        self._ending.clear()
        self._taking.clear()
        self._filling.clear()

    def leave(self, request_id: str) -> None:
        """This one leaves, if it is steady."""
        row = self._rows.get(request_id)
        if row is not None:
            self._leave(row)

    def _leave(self, row: _Row) -> None:
        self._catch_up(row)
        request = row.request
        del self._rows[request.request_id]
        self._table.moving[request.request_id] = request
        self._keys -= request.computed
        for step in self._open:
            if step.step_id > row.joined:
                self._give_chunk(step, request, request.computed - 1 - (self._planned - step.step_id))

    def _give_chunk(self, step: SteadyStep, request: Request, start: int) -> None:
        """A row of a step becomes a chunk, in its place among the decodes."""
        chunk = Chunk(
            request_id=request.request_id,
            start=start,
            length=1,
            block_table=request.block_table.copy(),
            phase=ChunkPhase.DECODE,
            samples=1,
        )
        step.rows -= 1
        step.keys -= start + 1
        opened, place = self._table.open, _place(request)
        decodes = (
            each.phase is ChunkPhase.DECODE
            and (each.request_id not in opened or _place(opened[each.request_id]) < place)
            for each in step.chunks
        )
        at = next((index for index, before in enumerate(decodes) if not before), len(step.chunks))
        step.chunks.insert(at, chunk)

    # --- leaps ---

    def steady_steps(self, planned: Step) -> int:
        """The number of steps, beginning with `planned`, in which these sequences decode, none of them for the last time, and
        nothing else happens. At most the tokens of a block."""
        rows, table = self._rows, self._table
        if not isinstance(planned, SteadyStep) or planned.chunks or planned.new or planned.rows != len(rows):
            return 0
        could_admit = bool(table.waiting) and len(table.running) < self._config.max_running
        # Each takes at most one in as many steps as a block has tokens.
        if table.moving or could_admit or self._may_differ(len(rows)) or not self._is_stable():
            return 0
        while self._ending and not self._stays(self._ending[0][2]):
            heappop(self._ending)
        return max(0, min(self._pool.block_size, self._ending[0][0] - 1 - self._planned))

    def _is_stable(self) -> bool:
        return self._policy.is_stable(self._table.waiting, self._table.running.values())

    def leap(self, planned: Step, steps: int, grow: Callable[[Request], None]) -> Step:
        """Do `steps` rounds at once, from 1 to what `steady_steps` says; returns the plan for the step after them.

        Args:
            planned: as in `steady_steps`.
            steps: how many.
            grow: gives a sequence the block that it lacks.
        """
        assert isinstance(planned, SteadyStep)
        step = planned
        for _ in range(steps):
            following = SteadyStep(step_id=step.step_id + 1, chunks=[])
            self._chunks.published_by.clear()
            for request in self.rows(following):
                grow(request)
            self.planned(following, ())
            for _chunk in self._absorb(step, ()):
                raise AssertionError("a quiet step has no chunks")
            step = following
        self._stats.steps += steps
        return step


def _place(request: Request) -> tuple[int, int]:
    return request.priority, request.arrival
