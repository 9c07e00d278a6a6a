"""One replica: the real scheduler and pool, stepped in simulated time as the engine's loop steps them.

    step N begins    `refresh` brings its plan up to date, `schedule` plans N+1
    while it runs    requests are added as they arrive
    step N ends      `update` absorbs its tokens; step N+1 begins

Rows that only decode have no chunks (`scheduler.skipping`), and a stretch of steps in which nothing can change is skipped
(`Scheduler.fast_forward`); an arrival in its middle cuts it at the last step that has ended. A request that is to be handed over
ends here with its first token; one that another replica hands over is added when there is room for its blocks. It may die at any
time, and start anew with nothing. What belongs here: that order and each request's record. Never: which replica, what a step costs.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from loadtest.simulate.cost import CostModel, Features, work_of
from loadtest.simulate.guesses.guesses import Guesses
from loadtest.simulate.hand_over import HandOver, make_resident
from loadtest.simulate.keepers.carrier import KeeperLane
from loadtest.simulate.open_request import OpenRequest
from loadtest.simulate.timeline import StepTicks
from scheduler.kv.block_journal import BlockJournal
from scheduler.kv.block_pool import BlockPool
from scheduler.router.state import ReplicaLimits, ReplicaState
from scheduler.router.view import ReplicaView, Role
from scheduler.scheduler import Scheduler
from scheduler.trails import NoTrails
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, RequestTimes
from scheduler.types.step import Chunk, ChunkResult, Step, StepResult, StepWork
from scheduler.types.transfers import TransferResult

MIN_SKIPPED = 2  # steps; one is as well done plainly
_NOTHING = ChunkResult(request_id="")  # of a chunk that samples nothing; the scheduler reads results by place
Log = list[tuple[float, float, Features]]  # begin, end and cost features of every step


# Counters of `EngineStats` that go on when a replica starts anew.
COUNTERS = (
    "steps",
    "preemptions",
    "recomputed_tokens",
    "prompt_tokens",
    "generation_tokens",
    "prefix_query_tokens",
    "prefix_hit_tokens",
)


class Replica:
    """Takes requests and says when its next event is due.

    Args:
        config: the scheduler's.
        new_pool: makes an empty pool of blocks.
        cost: how long steps take.
        role: which requests a router should send there; may change at any time.
        max_waiting: once this many requests wait, further ones are answered 429.
        fast_forward: whether rows and stretches without a change are skipped; the result is the same.
        log: filled with the steps, if given.
        give: called with each request that is to be handed over, when its first token is there.
        handed_over: told how long it took until a request that was handed over here had its next token.
        lane: to the keepers; None: there are none.
        viewed: whether a router asks for `view`; if not, nothing is kept for it.
        guesses: makes what guesses tokens ahead, anew for each life.

    Attributes:
        due: when `advance` must be called, in seconds; None while there is nothing to do.
        open: requests that have not ended.
        alive: whether it computes.
        available: whether requests are sent there: also for as long as nobody has noticed that it is dead.
        busy_seconds: of the steps that have ended.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        new_pool: Callable[[], BlockPool],
        cost: CostModel,
        *,
        role: Role = Role.MIXED,
        max_waiting: int = 1024,
        fast_forward: bool = True,
        log: Log | None = None,
        give: Callable[[HandOver], None] = lambda _: None,
        handed_over: Callable[[float], None] = lambda _: None,
        lane: KeeperLane | None = None,
        viewed: bool = True,
        guesses: Callable[[], Guesses | None] = lambda: None,
    ) -> None:
        self.role = role
        self._config = config
        self._new_pool = new_pool
        self._cost = cost
        self._delivery = cost.costs.delivery
        self._max_waiting = max_waiting
        self._fast_forward = fast_forward
        self._log = log
        self._give = give
        self._handed_over = handed_over
        self._lane = lane
        self._new_guesses = guesses
        self.busy_seconds = 0.0
        self._viewed = viewed
        self._start(EngineStats())
        self._state = ReplicaState(
            ReplicaLimits(
                blocks=self._pool.blocks,
                block_size=self._pool.block_size,
                step_tokens=config.max_step_tokens,
                running=config.max_running,
            )
        )
        if lane is not None:
            self._state.blocks = lane.block_index()
        self._report()

    def _start(self, counters: EngineStats) -> None:
        """Begin with nothing."""
        lane = self._lane
        self._pool = pool = self._new_pool()
        self._journal = BlockJournal()
        if self._viewed:
            pool.publish_to(self._journal)
        transfers = None if lane is None else lane.planner(pool)
        self._guesses = self._new_guesses()
        self.scheduler = Scheduler(self._config, pool, transfers, drafter=self._guesses, trails=NoTrails())
        for name in COUNTERS:
            setattr(self.scheduler.stats, name, getattr(counters, name))
        self._carrier = None if lane is None else lane.carrier(self._carried)
        self.alive = self.available = True
        self.due: float | None = None
        self._open: dict[str, OpenRequest] = {}
        self._given: deque[OpenRequest] = deque()  # handed over to this replica, until there is room for them
        self._step: Step | None = None  # running
        self._planned: Step | None = None
        self._began = 0.0  # of the running step, or of the stretch that is being skipped
        self._ends: list[float] = []  # of the steps of that stretch
        self._ticks = StepTicks()
        if self._fast_forward:
            self.scheduler.steady.carry(self._sampled)

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def request_ids(self) -> Collection[str]:
        """Those that have not ended."""
        return self._open.keys()

    def view(self, message: AddRequest, names: Sequence[bytes], now: float) -> ReplicaView:
        """What a router sees of it when the request arrives, the blocks of whose prompt have these `names`."""
        self.catch_up(now)
        while (changes := self._journal.take()) is not None:
            self._state.blocks.change(changes)
        return self._state.view(len(message.prompt_ids), names, now, role=self.role, available=self.available)

    def submit(self, request: OpenRequest, now: float) -> None:
        """A request arrives, from its client or from a replica that has died."""
        if not self.alive:  # nobody knows
            self._opened(request)
            return
        if self._ends:
            self._cut(now)
        if request.anew is None and self.scheduler.snapshot().waiting >= self._max_waiting:
            request.refuse(429, "too many requests wait")
            return
        self.scheduler.add(request.message, now, request.text.names)
        self._opened(request)
        if self._step is None:
            self._begin(now)

    def expect(self, given: HandOver) -> None:
        """A request will be handed over to this replica: it counts as open from now on."""
        self._opened(OpenRequest(given.message, given.text, given.record, given=given.ended))

    def take(self, given: HandOver, now: float) -> None:
        """The KV of a request that was expected has arrived; of no use if this replica has died since."""
        expected = self._open.get(given.message.request_id)
        if not self.alive or expected is None or expected.given is None:
            return
        if self._ends:
            self._cut(now)
        self._given.append(expected)
        if self._step is None:
            self._begin(now)

    def _opened(self, request: OpenRequest) -> None:
        message = request.message
        self._open[message.request_id] = request
        if not self._viewed:
            return
        tokens, known = len(message.prompt_ids) + len(message.generated_ids), len(message.generated_ids)
        left = message.sampling.max_tokens - known
        names = request.text.prompt_names
        self._state.submitted(message.request_id, tokens, left, names, loads=request.given is not None)

    # --- death ---

    def die(self, now: float) -> None:
        """It computes nothing any more, and what it was computing is lost."""
        self.catch_up(now)
        self.settle()
        if self._carrier is not None:
            self._carrier.close()
            self.scheduler.transfers.cancel(self.scheduler.transfers.moves)
        self._step = self._planned = self.due = None
        self._ends = []
        self.alive = False

    def orphans(self) -> list[OpenRequest]:
        """Everybody knows that it is dead. Returns what was open there, with the answers as far as they came."""
        started = [request for name, request in self._open.items() if self._state.sequences.by_id[name].started]
        for request in started or self._open.values():
            request.deaths += 1
        orphans = list(self._open.values())
        self.available = False
        self._open = {}
        self._given.clear()
        self._state.restarted()
        return orphans

    def revive(self) -> None:
        """It is there again, with nothing."""
        self._start(self.scheduler.stats)
        self._report()

    def renew(self, new_pool: Callable[[], BlockPool]) -> None:
        """Begin as if nothing had happened, with another pool."""
        self._new_pool = new_pool
        self.busy_seconds = 0.0
        self._start(EngineStats())
        self._report()

    def _report(self) -> None:
        """It is ready, and says what it has."""
        self._state.step_ended(StepWork(), 0.0, self.scheduler.snapshot(), 0.0)

    def _let_in(self, now: float) -> None:
        """Add what was handed over and has room: its blocks are there, and belong to it as soon as it is admitted."""
        scheduler, pool = self.scheduler, self._pool
        while self._given:
            given, stats = self._given[0], scheduler.snapshot()
            seats = scheduler.config.max_running - stats.running - stats.waiting
            fits = seats > 0 and pool.blocks_for(len(given.message.prompt_ids) + 1) <= pool.available
            if (scheduler.has_work or scheduler.transferring) and not fits:
                return
            self._given.popleft()
            make_resident(pool, given.text.prompt_names, given.text.prompt)
            scheduler.add(given.message, now, given.text.names)

    def advance(self) -> None:
        """Go on to `due`: a step or a stretch of steps ends, and the next begins."""
        assert self.due is not None
        now = self.due
        if self._ends:
            self._skip(len(self._ends))
        else:
            self._finish_step(now)
        self._let_in(now)
        if not (self._fast_forward and self._begin_stretch(now)):
            self._begin(now)

    # --- one step ---

    def _begin(self, now: float) -> None:
        scheduler = self.scheduler
        self._let_in(now)
        while not scheduler.idle:
            planned, self._planned = self._planned, None
            step = scheduler.schedule(now) if planned is None else scheduler.refresh(planned, now)
            if self._carrier is not None:
                self._carrier.start(step.transfers, now)
            if step.tokens:
                self._planned = scheduler.schedule(now)
                self._run(step, now)
                return
            if scheduler.has_work:
                if not scheduler.transferring:
                    raise RuntimeError("requests wait and nothing can run")
                scheduler.put_off(step)
                break
            scheduler.update(step, StepResult(step_id=step.step_id, results=[]), now)
            if scheduler.transferring:
                break
            self._let_in(now)
        self._step = self._planned = self.due = None

    def _carried(self, result: TransferResult, now: float) -> None:
        """A transfer has ended."""
        self.scheduler.absorb_transfer(result, now)
        if self._step is None:
            self._begin(now)

    def _run(self, step: Step, now: float) -> None:
        work = work_of(step)
        self._step, self._began = step, now
        if self._viewed:
            self._state.started([new.request_id for new in step.new])
        self.due = now + self._cost.seconds(work)
        if self._log is not None:
            self._log.append((now, self.due, self._cost.features(work)))

    def _finish_step(self, now: float) -> None:
        step, self._step = self._step, None
        assert step is not None
        running = self._open
        results = [running[chunk.request_id].sampled if chunk.samples else _NOTHING for chunk in step.chunks]
        tick = now + self._delivery
        self._ticks.add(step.step_id, [tick])
        if self._guesses is not None:
            self._verify(step.chunks, results)
        timed = self._carrier is not None or self._guesses is not None
        seconds = now - self._began if timed else 0.0  # what loading is compared with, and guesses are weighed by
        result = StepResult(step_id=step.step_id, results=results, seconds=seconds)
        outputs = self.scheduler.update(step, result, now)
        self.busy_seconds += now - self._began
        if self._viewed:
            self._state.step_ended(step.work(), now - self._began, self.scheduler.snapshot(), now)
        for output in outputs:
            if self._viewed:
                self._state.first_token(output.request_id)
            each = running[output.request_id]
            each.times.extend([tick] * len(output.token_ids))
            if output.times is not None:
                _tell(each, output.times)
            if each.given is not None:
                self._handed_over(now - each.given)
                each.given = None
            if output.finish_reason is not None:
                self._end(running.pop(output.request_id), output, tick)

    def _verify(self, chunks: Sequence[Chunk], results: list[ChunkResult]) -> None:
        """Chunks with guesses bring those that are right, and one token more."""
        assert self._guesses is not None
        for index, chunk in enumerate(chunks):
            if chunk.draft_ids:
                place = chunk.start + 1 - len(self._open[chunk.request_id].message.prompt_ids)
                right = self._guesses.accepted(chunk.request_id, place, len(chunk.draft_ids))
                results[index] = replace(results[index], token_ids=results[index].token_ids * (right + 1))

    def _end(self, ended: OpenRequest, output: Output, at: float) -> None:
        """A request ends here: as a whole, or with the first token, after which another replica goes on."""
        if self._viewed:
            self._state.ended(output.request_id)
        times, record = output.times, ended.record
        assert output.finish_reason is not None and record.timings is not None
        assert times is not None and times.first_token is not None
        if output.finish_reason is FinishReason.HANDED_OVER:
            message = replace(ended.message, hand_over=False, generated_ids=[ended.text.token])
            self._give(HandOver(message, ended.text, record, times.scheduled, times.first_token))
            return
        record.finished, record.status = at, 200
        record.finish_reason = output.finish_reason.value
        record.prompt_tokens, record.output_tokens = record.asked_prompt, len(record.tokens)
        record.timings["decode_ms"] = 1e3 * (at - record.tokens[0][0])
        if self._guesses is not None:
            record.tokens = ended.events()

    # --- stretches without a change ---

    def _begin_stretch(self, now: float) -> bool:
        """Whether nothing but time passes until `due`, which is some steps away."""
        planned = self._planned
        steps = 0 if planned is None else self.scheduler.steady_steps(planned)
        if planned is None or steps < MIN_SKIPPED:
            return False
        work = work_of(planned)
        end, rows, ends = now, work.sequences, self._ends
        for _ in range(steps):
            end += self._cost.seconds(work)
            ends.append(end)
            work.decode_keys += rows
        self._began, self.due = now, end
        return True

    def _skip(self, steps: int) -> None:
        """The first `steps` of the stretch have ended."""
        planned, ends = self._planned, self._ends[:steps]
        assert planned is not None
        if self._log is not None:
            self._log_stretch(planned, ends)
        running = [self._open[chunk.request_id] for chunk in planned.chunks]
        self.busy_seconds += ends[-1] - self._began
        seconds, work = (ends[-1] - self._began) / steps, planned.work() if self._viewed else None
        ticks = [end + self._delivery for end in ends]
        self._ticks.add(planned.step_id, ticks)
        self._planned = self.scheduler.fast_forward(
            planned, steps, lambda request_id: self._open[request_id].text.token
        )
        if work is not None:
            self._state.step_ended(work, seconds, self.scheduler.snapshot(), ends[-1], steps)
        for each in running:
            each.times.extend(ticks)
        self._ends = []
        self._began = ends[-1]

    def catch_up(self, now: float) -> None:
        """Skip to the last step that has ended by now; the stretch goes on."""
        ended = bisect_right(self._ends, now)
        if ended:
            rest = self._ends[ended:]
            self._skip(ended)
            self._ends = rest

    def settle(self) -> None:
        """Bring all records up to date."""
        self.scheduler.steady.settle()

    def _sampled(self, request_id: str, steps: range) -> list[int]:
        """Steps have sampled tokens of a request that nobody has looked at yet."""
        each = self._open[request_id]
        each.times.extend(self._ticks.of(steps))
        return [each.text.token] * len(steps)

    def _cut(self, now: float) -> None:
        """Skip to the last step that has ended by now, and let the next one run plainly."""
        ended = bisect_right(self._ends, now)
        if ended:
            self._skip(ended)
        self._ends = []
        self._begin(self._began)

    def _log_stretch(self, planned: Step, ends: list[float]) -> None:
        assert self._log is not None
        work, begin = work_of(planned), self._began
        for end in ends:
            self._log.append((begin, end, self._cost.features(work)))
            work.decode_keys += work.sequences
            begin = end


def _tell(request: OpenRequest, times: RequestTimes) -> None:
    """With its first token in a replica: what its prompt took there, if no other replica has told that already."""
    record, message = request.record, request.message
    if request.anew is not None:
        request.anew(len(message.prompt_ids) + len(message.generated_ids) - times.cached_tokens)
        request.anew = None
    if record.timings is None and times.first_token is not None:
        record.cached_tokens = times.cached_tokens
        record.timings = {
            "queue_ms": 1e3 * (times.scheduled - times.queued),
            "prefill_ms": 1e3 * (times.first_token - times.scheduled),
        }
