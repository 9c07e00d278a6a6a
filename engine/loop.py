"""The engine's loop: schedule -> submit -> update.

The worker computes in a thread of its own (torch releases the interpreter's lock); meanwhile this thread takes in commands and
plans. A worker that takes one step at a time gets step N+1 when N's results are in: it was planned while N ran and is brought up
to date first (`Scheduler.refresh`), so that nothing is computed for requests that have ended and new ones need not wait. A worker
that takes two gets N+1 while N runs, as planned: the device never waits for the host, at the cost of one row for each request that
N ends, and of up to one more step before a new request's first.

Whatever it waits for, the server hears of it every second (`engine/heartbeat.py`): a loop that is silent, or whose step does not
end, is stuck.

Transfers of a step start when the steps before it have ended: the blocks that they copy or fill belong to no step that still runs.

What belongs here: the order of those calls, and turning results into events. Never: policy, tensors.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from engine.grammar.anteroom import Anteroom, Preparation
from engine.heartbeat import Patience
from engine.ipc.channel import Channel
from engine.ipc.failures import DeviceLost
from engine.kv_store.flush import flush
from engine.kv_store.transfer import EXPECT_SECONDS, TransferWorker
from engine.map_sampler import MapSampler
from engine.worker import Pending, Worker
from scheduler.kv.block_pool import IntegrityError
from scheduler.scheduler import Scheduler
from scheduler.types.messages import (
    HEARTBEAT_SECONDS,
    NO_WORK,
    AbortRequests,
    AddRequest,
    Command,
    FinishReason,
    Output,
    PublishBlocks,
    PublishMap,
    SequencesStarted,
    Shutdown,
    StepOutputs,
    Stopping,
)
from scheduler.types.step import GraphCounts, Step, StepResult, StepWork

log = logging.getLogger("headrace.engine")


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that the worker has, or is about to have."""

    step: Step
    submitted: "Future[Pending]"

    @property
    def refused(self) -> bool:
        """Whether the worker raised when it was handed the step: then there is no point in building on it."""
        return self.submitted.done() and self.submitted.exception() is not None

    def result(self) -> StepResult:
        """Wait for the step; to be called in the worker's thread. Raises what `Pending.result` does."""
        return self.submitted.result().result()


class EngineLoop:
    """Drives one worker with one scheduler until told to stop, and the transfer worker where there are tiers below the device.

    Args:
        scheduler: plans.
        worker: computes.
        channel: brings commands, takes events.
        clock: seconds, monotonic.
        transfer_worker: carries blocks between tiers.
        thread: the worker's own, if it has one already; it is shut down at the end.
        heartbeat: seconds between heartbeats while it waits.
        preparation: what requests may need before they can be scheduled.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        worker: Worker,
        channel: Channel,
        *,
        clock: Callable[[], float] = time.monotonic,
        transfer_worker: TransferWorker | None = None,
        thread: ThreadPoolExecutor | None = None,
        heartbeat: float = HEARTBEAT_SECONDS,
        preparation: Preparation | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._channel = channel
        self._clock = clock
        self._transfer_worker = transfer_worker
        self._patience = Patience(channel, clock, heartbeat)
        self._map = MapSampler(scheduler, clock)
        self._anteroom = Anteroom(preparation, channel.wake)
        self._carried = 0  # transfers that have ended
        self._shutdown: Shutdown | None = None
        self._told = 0.0  # when it came
        self._planned: Step | None = None
        self._flights: deque[_Flight] = deque()  # steps that the worker has, the oldest first
        self._thread = thread or ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")

    def run(self) -> None:
        """Serve until Shutdown.

        Raises:
            ParentGone: the HTTP process has ended.
            DeviceLost: the worker cannot go on in this process.
            IntegrityError: the books are wrong; nothing that follows could be trusted.
        """
        try:
            while self._shutdown is None:
                self._serve_until_idle()
                self._rest()
            self._flush(self._shutdown)
        except DeviceLost:
            self._transfer_worker = None  # what a lost device holds cannot be given back
            raise
        finally:
            self._thread.shutdown()  # after the step that runs: its end wakes the channel, which the caller will close
            if self._transfer_worker is not None:
                self._transfer_worker.close()

    def _rest(self) -> None:
        """Nothing to do: check the books, send the final figures, sleep until a command comes."""
        if self._shutdown is not None:
            return
        self._scheduler.stats.integrity_checks += 1
        try:
            self._scheduler.check_integrity()
        except IntegrityError:
            self._scheduler.stats.integrity_failures += 1
            raise
        finally:
            self._emit([])
        while not self._scheduler.has_work and self._shutdown is None:
            self._patience.wait("idle", seconds=self._map.wait)
            if self._transfer_worker is not None:
                self._transfer_worker.look()
            self._receive()
            self._tell_blocks()

    def _serve_until_idle(self) -> None:
        while self._flights or self._news or not self._scheduler.idle:
            self._receive()
            if self._shutdown is not None:
                return
            if self._flights and (len(self._flights) == self._worker.depth or self._flights[0].refused):
                self._land()
                continue
            step = self._next_step()
            if step.chunks or not (self._flights or self._scheduler.has_work or self._scheduler.transferring):
                self._launch(step)
            elif self._flights:
                self._planned = step  # what they bring will say what can run
                self._land()
            else:
                self._wait_for_transfer(step)
        self._planned = None

    @property
    def _news(self) -> bool:
        """Whether the plan has something to tell the worker, though nothing to compute."""
        return self._planned is not None and bool(self._planned.retired)

    def _next_step(self) -> Step:
        now = self._clock()
        step, self._planned = self._planned, None
        return self._scheduler.schedule(now) if step is None else self._scheduler.refresh(step, now)

    def _launch(self, step: Step) -> None:
        if step.new:
            self._channel.send(SequencesStarted(request_ids=[new.request_id for new in step.new]))
        if not self._flights:
            self._start_transfers(step)
        self._flights.append(_Flight(step, self._thread.submit(self._worker.submit, step)))
        if self._worker.depth == 1:
            self._planned = self._scheduler.schedule(self._clock())
        self._map.changed()

    def _start_transfers(self, step: Step) -> None:
        if self._transfer_worker is not None:
            self._transfer_worker.start(step.transfers)

    def _wait_for_transfer(self, step: Step) -> None:
        """Nothing can run before a transfer ends, perhaps another engine's."""
        self._start_transfers(step)
        expecting = self._scheduler.expecting
        if not self._scheduler.transferring and not expecting:
            raise IntegrityError("requests wait and nothing can run")
        self._scheduler.put_off(step)
        self._emit([])  # what transfers have brought since
        longest = min(self._map.wait, EXPECT_SECONDS if expecting else math.inf)
        self._patience.wait("transfer", self._carried, seconds=longest)

    def _land(self) -> None:
        """Wait for the oldest step and absorb what it brought."""
        flight = self._flights[0]
        future = self._thread.submit(flight.result)
        future.add_done_callback(lambda _: self._channel.wake())
        while not future.done():
            self._patience.wait("step", flight.step.step_id, flight.step.tokens, self._map.wait)
            self._receive()
        self._flights.popleft()
        self._absorb(flight.step, future)
        if self._flights:
            self._start_transfers(self._flights[0].step)

    def _absorb(self, step: Step, future: "Future[StepResult]") -> None:
        now = self._clock()
        try:
            result = future.result()
        except DeviceLost:
            raise
        except Exception as error:
            log.exception("step %d failed; its %d requests end with an error", step.step_id, len(step.chunks))
            self._fail(step, f"the step failed: {type(error).__name__}: {error}", now)
            return
        outputs = self._scheduler.update(step, result, now)
        self._map.step_ended(step, result.seconds)
        if result.graphs is not None:
            self._count(result.graphs)
        self._emit(outputs, step.tokens, result.seconds, step.work())

    def _count(self, graphs: GraphCounts) -> None:
        stats = self._scheduler.stats
        stats.graph_steps, stats.graphs_recorded, stats.graphs_failed = graphs.steps, graphs.recorded, graphs.failed

    def _fail(self, step: Step, cause: str, now: float) -> None:
        """Fail a step, and those behind it, which were built on what it was to bring; they run to their ends first."""
        later = list(self._flights)
        self._flights.clear()
        futures = [self._thread.submit(flight.result) for flight in later]
        for error in (future.exception() for future in futures):
            if isinstance(error, DeviceLost):
                raise error
        self._emit(self._scheduler.fail([step, *(flight.step for flight in later)], self._planned, cause, now))
        self._planned = None

    # --- commands and events ---

    def _receive(self) -> None:
        ended: list[Output] = []
        for command in self._anteroom.pass_on(self._channel.receive()):
            self._obey(command, ended)
        if ended:
            self._emit(ended)
        if self._transfer_worker is not None:  # after the commands, of which one may have to know what a tier has now
            self._hear_of_tiers(self._transfer_worker)
        if (drawn := self._map.take()) is not None:
            self._channel.send(drawn)

    def _hear_of_tiers(self, worker: TransferWorker) -> None:
        for result in worker.finished():
            self._scheduler.absorb_transfer(result, self._clock())
            self._carried += 1
        changed = worker.changes(expected=self._scheduler.expecting)
        for name, kept in worker.returned():
            self._scheduler.transfers.take_up(name, kept)
            self._emit([])
        for name, changes in changed:
            self._scheduler.transfers.follow(name, changes)
        for name in worker.lost():
            self._scheduler.transfers.tiers.mark_lost(name)
            self._emit([])

    def _obey(self, command: Command, ended: list[Output]) -> None:
        match command:
            case AddRequest():
                self._map.changed()
                try:
                    self._scheduler.add(command, self._clock())
                except ValueError as error:
                    refused = Output(request_id=command.request_id, finish_reason=FinishReason.ERROR, error=str(error))
                    ended.append(refused)
            case AbortRequests():
                for request_id in command.request_ids:
                    ended += self._scheduler.abort(request_id, self._clock())
            case PublishBlocks():
                self._scheduler.publish_blocks(command.publish)
            case PublishMap():
                self._map.publish(command.publish)
            case Shutdown():
                log.info("told to stop: %s", command.reason)
                self._shutdown, self._told = command, self._clock()
                self._channel.send(Stopping())

    # --- the end ---

    def _flush(self, command: Shutdown) -> None:
        """Write KV that only this process has to a tier that survives it, if there is one."""
        if self._transfer_worker is None or command.flush_seconds is None:
            return
        if not any(tier.survives for tier in self._scheduler.transfers.tiers):
            return
        ends = self._told + command.flush_seconds  # a step that still ran has taken of it, too
        self._settle()
        left = max(0.0, ends - self._clock())
        flush(self._scheduler.transfers, self._transfer_worker, left, self._wait_and_ignore, self._clock)

    def _settle(self) -> None:
        """End all requests, and the steps that fill blocks: then each block holds what its name says."""
        self._emit(self._scheduler.abort_all(self._clock()))
        while self._flights:
            self._land()
        step, self._planned = self._planned, None
        if step is not None:
            step = self._scheduler.refresh(step, self._clock())
            if step.chunks:
                self._launch(step)
                self._land()
                step = self._planned
        if step is not None:
            self._scheduler.transfers.cancel(step.transfers)

    def _wait_and_ignore(self, seconds: float) -> None:
        """Sleep until a transfer has ended, at most so long. Commands have nobody to obey them any more."""
        self._channel.wait(seconds)
        for command in self._channel.receive():
            log.debug("ignored while stopping: %s", type(command).__name__)

    def _emit(self, outputs: list[Output], tokens: int = 0, seconds: float = 0.0, work: StepWork = NO_WORK) -> None:
        self._tell_blocks()
        self._map.changed()
        self._anteroom.ended(outputs)
        stats = replace(self._scheduler.snapshot())
        self._channel.send(StepOutputs.packed(outputs, stats, tokens, seconds, work))

    def _tell_blocks(self) -> None:
        """Which contents came and went, if somebody asked; before the outputs, which end what was known of a request's blocks."""
        while (changes := self._scheduler.block_changes()) is not None:
            self._channel.send(changes)
