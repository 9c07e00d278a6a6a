"""One incarnation of an engine: the child process and its private folder. Knows nothing of requests and sockets.

The endpoints are in a folder of this incarnation alone, so that nothing a dead engine left behind is ever read.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.ipc.child import spawn
from engine.ipc.private_folder import private_folder, remove_folder

HUGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """ZeroMQ addresses of the wire to an engine, one each way."""

    commands: str
    events: str


class RunningProcess(Protocol):
    """The process of one incarnation of an engine, on this machine or another.

    Attributes:
        started: monotonic stamp of its start.
    """

    @property
    def started(self) -> float: ...  # noqa: D102 - as above

    @property
    def pid(self) -> int:
        """Process id, on its machine; 0: it has none yet."""

    @property
    def exit_code(self) -> int | None:
        """None while it is alive; negative: killed by that signal."""

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` in the running loop as soon as it has ended."""

    def remove_endpoints(self) -> None:
        """Both sides are connected: nobody needs the names of the sockets any more."""

    async def exited(self, seconds: float) -> bool:
        """Wait for its end, for at most `seconds`; whether it has ended."""

    def kill(self) -> None:
        """End it at once, if it is still alive. `close` still has to be called."""

    def close(self) -> None:
        """Kill it if it is still alive, and release everything. May be called again."""

    def describe_exit(self) -> str:
        """Which process it was and how it ended, for a log line."""


class EngineProcess:
    """Starts `arguments` with `--commands` and `--events` at once; the rest of the server may be imported meanwhile."""

    def __init__(
        self,
        arguments: Sequence[str],
        descriptors: Sequence[int] = (),
        endpoints: Endpoints | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            arguments: its command line, but for the endpoints.
            descriptors: of ours that it has, too.
            endpoints: of a wire to another machine; None: of sockets in a folder of its own.
            environment: added to this process's.

        Raises:
            OSError: it cannot be started.
        """
        self.started = time.monotonic()
        self.folder = private_folder("headrace-")
        own = (f"ipc://{self.folder}/{name}" for name in ("commands", "events"))
        self.endpoints = endpoints or Endpoints(*own)
        wires = ["--commands", self.endpoints.commands, "--events", self.endpoints.events]
        variables = {**_tunables(), **(environment or {})}
        try:
            self._child = spawn([*arguments, *wires], environment=variables, descriptors=descriptors)
        except BaseException:
            remove_folder(self.folder)
            raise
        self._closed = False

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it is alive; negative: killed by that signal."""
        return self._child.poll()

    def watch(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit` in the running loop as soon as the child has ended."""
        watch_child(self._child, on_exit)

    def remove_endpoints(self) -> None:
        """Remove the folder: once both sides are connected nobody needs the names, and even kill -9 leaves nothing behind."""
        remove_folder(self.folder)

    async def exited(self, seconds: float) -> bool:
        """Wait for its end, for at most `seconds`; whether it has ended."""
        await asyncio.to_thread(self.wait, seconds)
        return self.exit_code is not None

    def wait(self, seconds: float | None = None) -> None:
        """Block until it has ended, for at most `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)

    def kill(self) -> None:
        """End it at once, if it is still alive. `close` still has to be called."""
        if self.exit_code is None:
            self._child.kill()

    def close(self) -> None:
        """Kill the child if it is still alive, and release everything. May be called again."""
        if self._closed:
            return
        self._closed = True
        self.kill()
        self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
        remove_folder(self.folder)

    def describe_exit(self) -> str:
        """Which process it was and how it ended, for a log line."""
        return f"process {self.pid} {exit_words(self.exit_code)}"


def watch_child(child: "subprocess.Popen[bytes]", on_exit: Callable[[], None]) -> None:
    """Call `on_exit` in the running loop as soon as the child has ended. A thread waits: no polling, on any platform."""
    loop = asyncio.get_running_loop()

    def wait() -> None:
        child.wait()
        with contextlib.suppress(RuntimeError):  # the loop closed first
            loop.call_soon_threadsafe(on_exit)

    threading.Thread(target=wait, name="child-exit", daemon=True).start()


def exit_words(code: int | None) -> str:
    """How a child ended, for a log line; None: it has not."""
    if code is None:
        return "is still running"
    return f"was killed by {_signal_name(-code)}" if code < 0 else f"exited with code {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _tunables() -> dict[str, str]:
    """Of the C library: it asks for huge pages, which every step's reading of the weights needs fewer address translations for,
    and has one heap, as it asks for none in the heaps of single threads. What the operator has set stays.
    """
    return {} if "GLIBC_TUNABLES" in os.environ else {"GLIBC_TUNABLES": HUGE_PAGES}
