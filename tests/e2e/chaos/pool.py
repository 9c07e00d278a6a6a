"""The server that is broken again and again: its processes by name, and the next server after one that was killed."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from tests.e2e.server_process import ServerProcess

HTTP, KEEPER = "HTTP process", "keeper"
READY_SECONDS = 120.0
END_SECONDS = 60.0  # for what a killed server leaves behind to notice


class Pool:
    """`headrace serve` with several engines, on one port from first to last.

    Args:
        folder: for temporary files, of which none may be left.
        arguments: of the command line.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._arguments = arguments
        self._folder = folder
        self._before = shared_memory_files()
        self._known: set[psutil.Process] = set()  # all processes that there ever were
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self.printed: list[str] = []
        self._start()

    def _start(self) -> None:
        os.environ["TMPDIR"] = str(self._folder)
        try:
            self.server = ServerProcess("--port", self._port, *self._arguments, wait=False)
            self.server.url = self.url
        finally:
            del os.environ["TMPDIR"]

    def wait_ready(self) -> None:
        """Wait for all engines. Transport errors are those of a server that has not begun to listen."""
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, KeyError, ValueError):
                if all(card["state"] == "ready" for card in self.cards()):
                    return
            assert self.server.process.poll() is None, "".join(self.server.output)
            time.sleep(0.1)
        raise AssertionError(f"not all engines are ready: {''.join(self.server.output)[-4000:]}")

    def cards(self) -> list[dict]:
        answer = httpx.get(f"{self.url}/v1/engines", timeout=30)
        return answer.raise_for_status().json()["data"]

    def processes(self) -> dict[str, psutil.Process]:
        """Those that may be killed, by name."""
        server = psutil.Process(self.server.process.pid)
        found = {HTTP: server}
        for child in server.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if name := process_name(child.cmdline()):
                    found[name] = child
        self._known |= set(found.values())
        return found

    def start_again(self) -> None:
        """After the HTTP process was killed: as a service manager would."""
        self.server.process.wait()
        self.printed += self.server.output
        self._start()

    def metric(self, name: str) -> float:
        """The sum over all engines."""
        return sum(value for full, value in self.server.metrics().items() if full.partition("{")[0] == name)

    def stop(self) -> Iterator[str]:
        """End it in good order. Gives what is wrong then."""
        self.processes()
        if failures := self.metric("headrace_integrity_failures_total"):
            yield f"the books of an engine were wrong {failures:g} times"
        if (code := self.server.stop()) != 0:
            yield f"the server ended with exit code {code}"
        self.printed += self.server.output
        deadline = time.monotonic() + END_SECONDS
        while (left := [each for each in self._known if alive(each)]) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            yield f"{process} was left behind"
            process.kill()
        if files := sorted(path.name for path in self._folder.iterdir()):
            yield f"files were left behind: {', '.join(files)}"
        if files := shared_memory_files() - self._before:
            yield f"shared memory was left behind: {', '.join(sorted(files))}"


def process_name(command: list[str]) -> str | None:
    if "engine.keeper" in command:
        return KEEPER
    if "engine" in command and "--share" in command:
        return json.loads(command[command.index("--share") + 1])["engine"]
    return None


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def shared_memory_files() -> set[str]:
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
