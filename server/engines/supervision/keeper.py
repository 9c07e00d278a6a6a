"""The keeper of shared KV tiers: its process, started again whenever it dies, and what outlives it.

The shared memory and the socket that engines connect to belong to this process: what was kept is there for the next keeper, and
engines find it where the last one was.
"""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

from configs.settings import Settings
from engine.ipc.child import spawn
from engine.ipc.keeper_address import KeeperAddress
from engine.ipc.private_folder import private_folder, remove_folder
from engine.ipc.shared_memory import shared_memory
from scheduler.types.messages import HEARTBEAT_SECONDS
from server.engines.health import OBEY_BEATS, SILENT_BEATS
from server.engines.process import exit_words, watch_child
from server.engines.supervision.restart import RestartPolicy

Door = Callable[[], AbstractContextManager[tuple[Sequence[str], Sequence[int]]]]
KeeperState = Literal["starting", "ready", "hanging", "dead", "stopped"]

_log = logging.getLogger("headrace.keeper")
_UP_SECONDS = 2.0  # one that lived for less, or was never heard, has not started
_BACKLOG = 128
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperReport:
    """How a keeper is doing.

    Attributes:
        state: in one word, as an engine's.
        trouble: why there are no KV tiers below the devices now, or None.
        restarts: how often it was started again, by what had ended it.
        pid: of its process, if it is on this machine and there is one.
    """

    state: KeeperState
    trouble: str | None
    restarts: Mapping[str, int]
    pid: int | None = None

    @property
    def up(self) -> bool:
        """Whether it works."""
        return self.state == "ready"


def _no_door() -> AbstractContextManager[tuple[Sequence[str], Sequence[int]]]:
    return contextlib.nullcontext(((), ()))


class KeeperSupervisor:
    """Starts the keeper at once, and keeps it running from `run` to `stop`.

    Args:
        settings: the server's.
        policy: when it is started again.
        door: gives arguments and descriptors to each keeper, by which other machines reach it; None: they do not.

    Attributes:
        address: what engines are told.
        descriptors: that engines inherit.
        restarts: how often it was started again, by what had ended it.
        trouble: why there are no KV tiers below the devices now, or None.

    Raises:
        OSError: the process cannot be started, or the memory or the socket not be made; nothing is left behind.
    """

    def __init__(self, settings: Settings, policy: RestartPolicy | None = None, door: Door | None = None) -> None:
        self._door = door or _no_door
        self._policy = policy or RestartPolicy()
        self._child: subprocess.Popen[bytes] | None = None
        self._start_seconds, self._hang_seconds = settings.start_seconds, settings.hang_seconds
        self._silence = 0.0  # seconds, of those in which this process was awake
        self._awake = self._given_up = False
        self.trouble: str | None = None
        self.restarts = {"died": 0, "hung": 0}
        self._beats = -1  # descriptor from which a living keeper is heard
        self._stop = asyncio.Event()
        self._folder = private_folder()
        self._listener: socket.socket | None = None
        self._slab = -1
        try:
            slab = shared_memory("headrace-kv")
            if slab is None:
                raise OSError("shared KV tiers take Linux; leave out kv_host_gib and kv_disk_path, or take one engine")
            self._slab = slab
            path = str(self._folder / "keeper")
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(path)
            self._listener.listen(_BACKLOG)
            self.address = KeeperAddress(socket=path, slab=self._slab)
            self._arguments = [
                *(sys.executable, "-m", "engine.keeper", "--settings", settings.for_engine()),
                *("--listener", str(self._listener.fileno()), "--slab", str(self._slab)),
            ]
            self._start()
        except BaseException:
            self.close()
            raise
        self.descriptors = (self._slab,)

    @property
    def pid(self) -> int | None:
        """Process id of the keeper; None: there is none at the moment."""
        return None if self._child is None else self._child.pid

    @property
    def state(self) -> KeeperState:
        """In one word, as an engine's."""
        if self._stop.is_set():
            return "stopped"
        if self._given_up:
            return "dead"
        if not self._awake:
            return "starting"
        return "hanging" if self._silence > SILENT_BEATS * HEARTBEAT_SECONDS else "ready"

    def reports(self) -> Mapping[str, KeeperReport]:
        """How it is doing, by the name of this machine, which needs none."""
        restarts = self.restarts.copy()
        return {"": KeeperReport(state=self.state, trouble=self.trouble, restarts=restarts, pid=self.pid)}

    async def run(self) -> None:
        """Run one keeper after the other, until `stop` or until that is given up."""
        while not self._stop.is_set():
            try:
                cause, reason, seconds = await self._live(self._child or self._start())
            except OSError as error:
                cause, reason, seconds = f"cannot be started: {error}", "died", 0.0
            if self._stop.is_set():
                return
            delay = self._policy.after_death(time.monotonic(), was_ready=seconds > _UP_SECONDS)
            if delay is None:
                self._give_up(cause)
                return
            _log.error("keeper: %s; starting it again%s", cause, f" in {delay:g} s" if delay else "")
            self.trouble = f"{cause}; it is started again"
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            self.restarts[reason] += not self._stop.is_set()

    async def stop(self, flush_seconds: float, grace: float = 2.0) -> None:
        """Let it write for that long what would be lost with it, and end within `grace` seconds more; one that is silent is not
        waited for. `run`, which has to run meanwhile, returns soon after."""
        self._stop.set()
        child = self._child
        if child is None or child.stdin is None or child.poll() is not None:
            return
        with contextlib.suppress(OSError):  # it has just died
            child.stdin.write(f"{flush_seconds}\n".encode())
            child.stdin.flush()
        until = time.monotonic() + flush_seconds + grace
        while (left := until - time.monotonic()) > 0 and self._silence <= OBEY_BEATS * HEARTBEAT_SECONDS:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(child.wait, min(left, _LOOK_SECONDS))
                return
        child.kill()

    def close(self) -> None:
        """End it at once, and release everything. May be called again."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            if self._child.stdin is not None:
                self._child.stdin.close()
            self._child = None
        self._refuse()
        for descriptor in (self._slab, self._beats):
            if descriptor >= 0:
                os.close(descriptor)
        self._slab = self._beats = -1
        remove_folder(self._folder)

    def _start(self) -> "subprocess.Popen[bytes]":
        assert self._listener is not None
        heard, beats = os.pipe()
        try:
            os.set_blocking(heard, False)
            inherited = [self._listener.fileno(), self._slab, beats]
            with self._door() as (arguments, descriptors):
                line = [*self._arguments, "--beats", str(beats), *arguments]
                self._child = spawn(line, descriptors=[*inherited, *descriptors])
        except BaseException:
            os.close(heard)
            raise
        finally:
            os.close(beats)
        self._beats = heard
        return self._child

    async def _live(self, child: "subprocess.Popen[bytes]") -> tuple[str, str, float]:
        """Wait for its end: the cause, in a sentence and in a word, and how many seconds it lived; 0 if it was never heard."""
        ended, began = asyncio.Event(), time.monotonic()
        watch_child(child, ended.set)
        cause = ""
        while not await _set_within(ended, _LOOK_SECONDS):
            self._look()
            if self._silence > (self._hang_seconds if self._awake else self._start_seconds) and not cause:
                cause = f"has said nothing for {self._silence:g} s ({'hang' if self._awake else 'start'}_seconds)"
                child.kill()
        if child.stdin is not None:
            child.stdin.close()
        os.close(self._beats)
        lived = time.monotonic() - began if self._awake else 0.0
        self._child, self._beats, self._silence, self._awake = None, -1, 0.0, False
        words = f"process {child.pid} {cause or exit_words(child.returncode)}"
        return words, "hung" if cause else "died", lived

    def _look(self) -> None:
        """See whether it has been heard of lately."""
        if self._heard():
            self._awake, self._silence, self.trouble = True, 0.0, None
            return
        self._silence += _LOOK_SECONDS
        if self.state == "hanging":
            self.trouble = f"it has said nothing for {self._silence:g} s"

    def _give_up(self, cause: str) -> None:
        _log.error("keeper: %s; given up: engines go on without KV tiers", cause)
        self._given_up = True
        self.trouble = f"{cause}; given up until the server is started again, as {self._policy.why}"
        self._refuse()

    def _heard(self) -> bool:
        try:
            return bool(os.read(self._beats, 4096))
        except BlockingIOError:
            return False

    def _refuse(self) -> None:
        """Nobody waits any more for a keeper that does not come."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for it, for at most so long; whether it is set."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()
