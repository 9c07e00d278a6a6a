"""Keeps an engine running: starts it, watches it, notices death or silence, starts it again, gives up in the end."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable

from engine.ipc.failures import EXIT_MODEL
from scheduler.types.messages import HEARTBEAT_SECONDS
from server.engines.health import OBEY_BEATS
from server.engines.launch import Incarnation
from server.engines.process import RunningProcess
from server.engines.supervision.incarnations import Incarnations
from server.engines.supervision.restart import RestartPolicy

_log = logging.getLogger("headrace.engine")
_LAST_OUTPUTS_SECONDS = 0.1  # what a dead engine had sent may still be on its way through the socket
# The longest wait for the engine's own account of why it failed, if its exit code says that there is one.
_LAST_WORDS_SECONDS = 5.0
STOP_GRACE_SECONDS = 5.0
_EXIT = "exit"


class Supervisor:
    """Runs one incarnation after the other and tells the client what happens to them. One log line for each death.

    `hang_seconds`: a ready engine that is silent for longer, or waits longer for a step, is killed (`Liveness.hang`). Only time
    during which this process itself was awake counts, so that an engine is not killed because both were suspended.
    """

    def __init__(
        self,
        incarnations: Incarnations,
        launch: Callable[[], Incarnation],
        *,
        start_seconds: float,
        hang_seconds: float,
        policy: RestartPolicy | None = None,
        on_given_up: Callable[[], None] = lambda: None,
        tick: float = 0.5,
    ) -> None:
        self._incarnations = incarnations
        self._name, self._status = incarnations.client.name, incarnations.client.status
        self._launch = launch
        self._start_seconds = start_seconds
        self._hang_seconds = hang_seconds
        self._policy = policy or RestartPolicy()
        self._on_given_up = on_given_up
        self._tick = tick
        self._ended: asyncio.Future[str] | None = None
        self._process: RunningProcess | None = None
        self._replacing: asyncio.Event | None = None  # set when the incarnation that was told to end has ended
        self._stop = asyncio.Event()
        self._revival = asyncio.Event()  # set where nothing is to be waited for after giving up

    async def run(self, first: Incarnation | None = None) -> None:
        """Run until `stop`. Once restarting is given up (the client's state says so), nothing is started before `revive`.

        `first`: an incarnation that was started beforehand. An engine that has never become ready is not started again: the
        cause (a missing file, too little memory) is for the operator to remove.
        """
        ever_ready, incarnation = False, first
        while not self._stop.is_set():
            try:
                cause, was_ready = await self._live(incarnation or self._launch())
            except OSError as error:  # not even a process
                cause, was_ready = f"cannot be started: {error}", False
            incarnation = None
            replacing, self._replacing = self._replacing, None
            if replacing is not None:
                replacing.set()
                cause = "it was told to restart"
            if self._stop.is_set():
                return
            self._incarnations.detach(cause)
            ever_ready = ever_ready or was_ready
            if replacing is not None:
                self._incarnations.restarting()
                continue
            delay = self._policy.after_death(time.monotonic(), was_ready=was_ready) if ever_ready else None
            if delay is None:
                await self._given_up(cause, self._policy.why if ever_ready else "its first start failed")
            else:
                await self._pause(cause, delay)

    async def _given_up(self, cause: str, why: str) -> None:
        """Tell everybody, and wait until something else is to be done."""
        _log.error("%s: %s; given up, as %s", self._name, cause.rstrip("."), why)
        self._incarnations.give_up(why)
        self._on_given_up()
        await self._revival.wait()
        self._revival.clear()

    def revive(self) -> None:
        """Start anew an engine that has been given up, as if nothing had happened before."""
        _log.info("%s: started anew, as it was told", self._name)
        self._policy.forget()
        self._incarnations.revived()
        self._revival.set()

    async def _pause(self, cause: str, delay: float) -> None:
        _log.error("%s: %s; starting it again%s", self._name, cause.rstrip("."), f" in {delay:g} s" if delay else "")
        self._incarnations.restarting()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), delay)

    async def _live(self, incarnation: Incarnation) -> tuple[str, bool]:
        """Run one incarnation from start to end; the cause of its end, and whether it had become ready."""
        process = self._process = incarnation.process
        self._ended = ended = asyncio.get_running_loop().create_future()
        try:
            self._incarnations.attach(process, incarnation.wire, self._end)
            process.watch(lambda: self._end(_EXIT))
            end = await self._watch(process, ended)
            if end == _EXIT:
                await self._last_words(process)
        finally:
            self._process = None
            exit_words = process.describe_exit()
            self._incarnations.disconnect()
            process.close()
        said = self._incarnations.last_words
        cause = (said or exit_words) if end == _EXIT else end
        return cause, self._status.state == "ready"

    async def _last_words(self, process: RunningProcess) -> None:
        """Wait for what it had sent to arrive."""
        seconds = _LAST_WORDS_SECONDS if process.exit_code == EXIT_MODEL else _LAST_OUTPUTS_SECONDS
        deadline = time.monotonic() + seconds
        while self._incarnations.last_words is None and time.monotonic() < deadline:
            await asyncio.sleep(_LAST_OUTPUTS_SECONDS / 10)

    def _end(self, cause: str) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(cause)

    async def _watch(self, process: RunningProcess, ended: "asyncio.Future[str]") -> str:
        before = time.monotonic()
        while True:
            await asyncio.wait({ended}, timeout=self._tick)
            if ended.done():
                return ended.result()
            now = time.monotonic()
            passed, before = min(now - before, 2 * self._tick), now
            if self._status.state == "starting" and now - process.started > self._start_seconds:
                return f"was not ready within {self._start_seconds:g} s (start_seconds)"
            if self._status.state in ("ready", "stopped"):
                self._status.passed(passed)
            if self._status.state == "ready":
                hang = self._status.liveness.hang(self._hang_seconds, self._hang_seconds)
                if hang is not None:
                    return f"it {hang}, longer than {self._hang_seconds:g} s (hang_seconds)"

    async def restart(self, flush_seconds: float) -> None:
        """End the present incarnation in good order, so that another follows at once; this counts as no death. What is open on it
        fails, so it should be drained. Returns when it has ended.

        Args:
            flush_seconds: for writing KV that would be lost with it.
        """
        process = self._process
        if process is None:  # another one follows anyway
            return
        replacing = self._replacing = asyncio.Event()
        seconds = STOP_GRACE_SECONDS + flush_seconds if self._status.state == "ready" else 0.0
        await self._dismiss(process, seconds, flush_seconds)
        await replacing.wait()

    async def stop(self, grace: float = STOP_GRACE_SECONDS, flush_seconds: float | None = 0.0) -> None:
        """Ask the engine to exit, and kill it if it does not in time; `run` returns soon after.

        Args:
            grace: seconds for its current step, and for whatever else it does not count; an engine that hangs has none, one that
                is silent no more than `OBEY_BEATS`, nor than half of the time for writing, which may be others' too.
            flush_seconds: beyond that, for writing KV that would be lost with it; None: no tier survives the server.
        """
        self._stop.set()
        self._revival.set()
        was_ready, hangs = self._status.state == "ready", self._status.hang is not None
        self._incarnations.stopped()
        seconds = (0.0 if hangs else grace) + (flush_seconds or 0.0) if was_ready and grace > 0 else 0.0
        if self._process is not None:
            await self._dismiss(self._process, seconds, flush_seconds)

    async def _dismiss(self, process: RunningProcess, seconds: float, flush_seconds: float | None) -> None:
        """End it, at its own pace for that long, of which it may write for `flush_seconds`."""
        if seconds > 0:
            self._incarnations.shut_down(flush_seconds)
            liveness, until = self._status.liveness, time.monotonic() + seconds
            before = liveness.silence
            while (left := until - time.monotonic()) > 0 and not await process.exited(min(left, self._tick)):
                before = min(before, liveness.silence)  # what it had sent before is heard first
                if not liveness.stops and self._is_silent(liveness.silence - before, flush_seconds):
                    break
        process.kill()

    def _is_silent(self, seconds: float, flush_seconds: float | None) -> bool:
        """Whether it will not stop by itself, as it has said nothing for so long since it was told to."""
        if flush_seconds is not None and seconds > max(HEARTBEAT_SECONDS, flush_seconds / 2):
            return True
        return self._status.liveness.missed(OBEY_BEATS)

    def kill(self) -> None:
        """End the engine at once; for the second signal."""
        if self._process is not None:
            self._process.close()
