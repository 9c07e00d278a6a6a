"""A real Ray cluster of two nodes on this machine: 127.0.0.2 is the head, 127.0.0.3 can be killed and started again."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # not 127.0.0.1, which Ray replaces
_START_SECONDS = 120
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_MEMORY_MONITOR": "1", "RAY_worker_niceness": "0"}


class RayNodes:
    """Starts both; `close` ends them.

    Args:
        cpus: of each, as Ray counts them.

    Attributes:
        address: of the cluster.

    Raises:
        RuntimeError: Ray does not start.
    """

    def __init__(self, cpus: int = 1) -> None:
        self._cpus = cpus
        self._folder = Path(tempfile.mkdtemp(prefix="ray"))  # Ray's sockets lie below it, so its name is short
        with socket.socket() as found:
            found.bind((HEAD, 0))
            port = found.getsockname()[1]
        self.address = f"{HEAD}:{port}"
        try:
            alone = (f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}")
            self._start("--head", *alone, node=HEAD)
            self.start_other()
        except BaseException:
            self.close()
            raise

    def start_other(self) -> None:
        """The second node joins, for the first time or anew."""
        self._start(f"--address={self.address}", node=OTHER)

    def kill_other(self) -> int:
        """Everything of the second node ends at once, as if its machine had lost power. Returns how many processes that were."""
        return self._kill(OTHER)

    def close(self) -> None:
        """End both."""
        for node in (OTHER, HEAD, ""):  # at last whatever names no node
            self._kill(node)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str, node: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        line = [ray, "start", *arguments, f"--node-ip-address={node}", f"--num-cpus={self._cpus}", "--num-gpus=0"]
        limits = ["--object-store-memory=100000000", "--disable-usage-stats"]
        done = subprocess.run(
            [*line, *limits],
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)

    def _kill(self, node: str) -> int:
        found = self._processes(node)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(found)

    def _processes(self, node: str) -> set[int]:
        """Those of a node of this cluster, and all that they have started."""
        lines = dict(_command_lines())
        parents = dict(_parents())
        mine = {
            pid
            for pid, line in lines.items()
            if (str(self._folder) in line or self.address in line)
            and (not node or f"node-ip-address={node}" in line.replace("_", "-"))
        }
        while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
            mine |= more
        return mine


def _command_lines() -> Iterator[tuple[int, str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_text(errors="replace").replace("\0", " ")


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
