"""A real server for tests: the `headrace` command in a process of its own, its engine in another, real sockets."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil

HEADRACE = Path(sys.executable).with_name("headrace")
START_SECONDS = 120


class ServerProcess:
    """`headrace serve` on a free port. `output` collects what it prints."""

    def __init__(self, *arguments: str, wait: bool = True) -> None:
        self.process = subprocess.Popen(
            [HEADRACE, "serve", "--port", "0", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        self.output: list[str] = []
        self._printed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = ""
        if wait:
            self.url = self.wait_for(r"headrace listens on (http://\S+)").group(1)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._printed:
                    self.output.append(line)
                    self._printed.notify_all()
        with self._printed:
            self._ended = True
            self._printed.notify_all()

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """The first match in what was printed so far or is printed in time."""
        deadline = time.monotonic() + seconds
        with self._printed:
            while (match := re.search(pattern, "".join(self.output))) is None:
                if self._ended or not self._printed.wait(max(0.0, deadline - time.monotonic())):
                    raise AssertionError(f"{pattern!r} was not printed; what was:\n{''.join(self.output)}")
        return match

    @property
    def engine(self) -> psutil.Process:
        """The engine process of the moment."""
        for child in psutil.Process(self.process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if "engine" in child.cmdline():
                    return child
        raise AssertionError("there is no engine process")

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, `name{labels}` to value."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    def wait_until(self, condition, seconds: float = 60.0):
        """Poll until `condition()` is true; its value. Transport errors count as false."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                if value := condition():
                    return value
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.05)

    def wait_idle(self) -> dict[str, float]:
        """Wait until nothing runs or waits; the metrics then."""

        def idle():
            metrics = self.metrics()
            return (
                metrics if metrics["headrace_sequences_running"] == metrics["headrace_sequences_waiting"] == 0 else None
            )

        return self.wait_until(idle)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        """The signal, wait, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(by)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(10)
        return self.process.returncode
