"""A real Ray cluster of two nodes on this machine: 127.0.0.2 is the head, 127.0.0.3 can be killed and started again."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RAY = Path(sys.executable).with_name("ray")
HEAD, OTHER = "127.0.0.2", "127.0.0.3"  # not 127.0.0.1, which Ray replaces
START_SECONDS = 120
ENVIRONMENT = {
    **os.environ,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_MEMORY_MONITOR": "1",
    "RAY_worker_niceness": "0",
    "RAY_TMPDIR": "",
}


class RayNodes:
    """Two nodes with so many CPUs each."""

    def __init__(self, cpus: int = 1) -> None:
        self._cpus = cpus
        self._folder = Path(tempfile.mkdtemp(prefix="ray"))  # Ray's sockets lie below it
        with socket.socket() as found:
            found.bind((HEAD, 0))
            self.address = f"{HEAD}:{found.getsockname()[1]}"
        try:
            port = self.address.partition(":")[2]
            self._start(
                "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self._folder}", node=HEAD
            )
            self.start_other()
        except BaseException:
            self.close()
            raise

    def start_other(self) -> None:
        """The second node joins, for the first time or anew."""
        self._start(f"--address={self.address}", node=OTHER)

    def kill_other(self) -> list[str]:
        """Everything of the second node ends at once, as if its machine had lost power. Returns what it was."""
        killed = []
        for process in self._processes(OTHER):
            with contextlib.suppress(psutil.NoSuchProcess):
                killed.append(" ".join(process.cmdline()[:3]))
                process.kill()
        return killed

    def close(self) -> None:
        """End both."""
        for node in (OTHER, HEAD):
            for process in self._processes(node):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, *arguments: str, node: str) -> None:
        line = [RAY, "start", *arguments, f"--node-ip-address={node}", f"--num-cpus={self._cpus}", "--num-gpus=0"]
        limits = ["--object-store-memory=100000000", "--disable-usage-stats"]
        done = subprocess.run(
            [*line, *limits], env=ENVIRONMENT, capture_output=True, text=True, timeout=START_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _processes(self, node: str) -> list[psutil.Process]:
        """Those of a node of this cluster, and all that they have started."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                line = " ".join(process.cmdline()).replace("_", "-")
                folder = str(self._folder).replace("_", "-")
                mine = folder in line or self.address in line
                if mine and f"--node-ip-address={node}" in line.replace("address ", "address="):
                    found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        return list(found.values())


def until(condition, seconds: float = START_SECONDS):
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.1)
    return value
