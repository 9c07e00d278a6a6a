"""The engine's loop: schedule -> run -> update.

The worker computes step N in a thread of its own (torch releases the interpreter's lock); meanwhile this thread takes
commands in and plans step N+1, which is brought up to date when N's results are in (`Scheduler.refresh`).

What belongs here: the order of those calls, and turning results into events. Never: policy, tensors.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from engine.channel import Channel, Command
from engine.mover import Mover
from engine.worker import Worker
from scheduler.block_pool import IntegrityError
from scheduler.messages import AbortRequests, AddRequest, FinishReason, Output, Shutdown, StepOutputs
from scheduler.scheduler import Scheduler
from scheduler.step import Step, StepResult

log = logging.getLogger("headrace.engine")


class Stopped(Exception):
    """A Shutdown command has come."""


class EngineLoop:
    """Drives one worker with one scheduler until told to stop, and the mover where there are tiers below the device."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker: Worker,
        channel: Channel,
        clock: Callable[[], float] = time.monotonic,
        mover: Mover | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._channel = channel
        self._clock = clock
        self._mover = mover
        self._planned: Step | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="worker")

    def run(self) -> None:
        """Serve until Shutdown.

        Raises:
            ParentGone: the HTTP process has ended.
            IntegrityError: the books are wrong; nothing that follows could be trusted.
        """
        try:
            while True:
                self._serve_until_idle()
                self._rest()
        except Stopped:
            pass
        finally:
            self._thread.shutdown()  # after the step that runs: its end wakes the channel, which the caller will close
            if self._mover is not None:
                self._mover.close()

    def _rest(self) -> None:
        """Nothing to do: check the books, tell the final figures, sleep until a command comes."""
        self._scheduler.stats.integrity_checks += 1
        try:
            self._scheduler.check_integrity()
        except IntegrityError:
            self._scheduler.stats.integrity_failures += 1
            raise
        finally:
            self._emit([])
        while not self._scheduler.has_work:
            self._channel.wait()
            self._receive()

    def _serve_until_idle(self) -> None:
        while not self._scheduler.idle:
            self._receive()
            step = self._next_step()
            if self._mover is not None:
                self._mover.start(step.moves)
            if not step.chunks and self._scheduler.moving:
                self._scheduler.put_off(step)
                self._emit([])  # what moves have brought since
                self._channel.wait()  # for a move to end, or a command
                continue
            if not step.chunks and self._scheduler.has_work:
                raise IntegrityError("requests wait and nothing can run")
            self._run(step)
        self._planned = None

    def _next_step(self) -> Step:
        now = self._clock()
        step, self._planned = self._planned, None
        return self._scheduler.schedule(now) if step is None else self._scheduler.refresh(step, now)

    def _run(self, step: Step) -> None:
        future = self._thread.submit(self._worker.run, step)
        future.add_done_callback(lambda _: self._channel.wake())
        self._planned = self._scheduler.schedule(self._clock())
        while not future.done():
            self._channel.wait()
            self._receive()
        self._absorb(step, future)

    def _absorb(self, step: Step, future: "Future[StepResult]") -> None:
        now = self._clock()
        try:
            result = future.result()
        except Exception as error:
            log.exception("step %d failed; its %d requests end with an error", step.step_id, len(step.chunks))
            cause = f"the step failed: {type(error).__name__}: {error}"
            self._emit(self._scheduler.fail(step, self._planned, cause, now))
            self._planned = None
            return
        outputs = self._scheduler.update(step, result, now)
        self._emit(outputs, step.tokens, result.seconds)

    # --- commands and events ---

    def _receive(self) -> None:
        if self._mover is not None:
            for moved in self._mover.finished():
                self._scheduler.moved(moved)
        ended: list[Output] = []
        for command in self._channel.receive():
            self._obey(command, ended)
        if ended:
            self._emit(ended)

    def _obey(self, command: Command, ended: list[Output]) -> None:
        match command:
            case AddRequest():
                try:
                    self._scheduler.add(command, self._clock())
                except ValueError as error:
                    refused = Output(request_id=command.request_id, finish_reason=FinishReason.ERROR, error=str(error))
                    ended.append(refused)
            case AbortRequests():
                outputs = (self._scheduler.abort(request_id, self._clock()) for request_id in command.request_ids)
                ended += [output for output in outputs if output is not None]
            case Shutdown():
                log.info("told to stop: %s", command.reason)
                raise Stopped

    def _emit(self, outputs: list[Output], tokens: int = 0, seconds: float = 0.0) -> None:
        stats = replace(self._scheduler.snapshot())
        self._channel.send(StepOutputs(outputs=outputs, stats=stats, step_tokens=tokens, step_seconds=seconds))
