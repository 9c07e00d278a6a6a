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

from configs.settings import Settings
from engine.ipc.child import spawn
from engine.ipc.keeper_address import KeeperAddress
from engine.ipc.private_folder import private_folder, remove_folder
from server.engines.process import exit_words, watch_child
from server.engines.restart import RestartPolicy

_log = logging.getLogger("headrace.keeper")
_UP_SECONDS = 2.0  # one that lived for less has not started
_GRACE_SECONDS = 2.0
_BACKLOG = 128


class KeeperSupervisor:
    """Starts the keeper at once, and keeps it running from `run` to `stop`.

    Args:
        settings: the server's.
        policy: when it is started again.

    Attributes:
        address: what engines are told.
        descriptors: that engines inherit.

    Raises:
        OSError: the process cannot be started, or the memory or the socket not be made; nothing is left behind.
    """

    def __init__(self, settings: Settings, policy: RestartPolicy | None = None) -> None:
        self._policy = policy or RestartPolicy()
        self._child: subprocess.Popen[bytes] | None = None
        self._stop = asyncio.Event()
        self._folder = private_folder()
        self._listener: socket.socket | None = None
        self._slab = -1
        try:
            self._slab = os.memfd_create("headrace-kv")
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

    async def run(self) -> None:
        """Run one keeper after the other, until `stop` or until that is given up."""
        while self._child is not None and not self._stop.is_set():
            cause, seconds = await self._live(self._child)
            if self._stop.is_set():
                return
            delay = self._policy.after_death(time.monotonic(), was_ready=seconds > _UP_SECONDS)
            if delay is None:
                _log.error("keeper: %s; given up: engines go on without KV tiers", cause)
                self._refuse()
                return
            _log.error("keeper: %s; starting it again%s", cause, f" in {delay:g} s" if delay else "")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
            if not self._stop.is_set():
                self._start()

    async def stop(self, flush_seconds: float) -> None:
        """Let it write for that long what would be lost with it, and end. `run` returns soon after."""
        self._stop.set()
        child = self._child
        if child is None or child.stdin is None or child.poll() is not None:
            return
        with contextlib.suppress(OSError):  # it has just died
            child.stdin.write(f"{flush_seconds}\n".encode())
            child.stdin.flush()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(child.wait, flush_seconds + _GRACE_SECONDS)
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
        if self._slab >= 0:
            os.close(self._slab)
            self._slab = -1
        remove_folder(self._folder)

    def _start(self) -> None:
        assert self._listener is not None
        self._child = spawn(self._arguments, descriptors=[self._listener.fileno(), self._slab])

    async def _live(self, child: "subprocess.Popen[bytes]") -> tuple[str, float]:
        """Wait for its end: the cause in words, and how many seconds it lived."""
        ended, began = asyncio.Event(), time.monotonic()
        watch_child(child, ended.set)
        await ended.wait()
        if child.stdin is not None:
            child.stdin.close()
        return f"process {child.pid} {exit_words(child.returncode)}", time.monotonic() - began

    def _refuse(self) -> None:
        """Nobody waits any more for a keeper that does not come."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
