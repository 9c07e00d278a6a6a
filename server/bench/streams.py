"""Processor time of the HTTP process for a streamed token, with engines that compute nothing.

    python -m server.bench.streams                                   # this tree, 64 and 256 streams
    python -m server.bench.streams --against ../before --rounds 5    # and another tree (with its .venv) in turn, and the ratio

What a token costs: the processor time of all the process's threads over a window in which nothing begins or ends, over the tokens
that its clients received meanwhile. The pace is that of `--rate`, which the machine has to be able to keep. Nothing is asserted.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
READY_SECONDS = 60.0
SETTLE_SECONDS = 1.0


class Clients:
    """Open streams; counts the events that have arrived."""

    def __init__(self, port: int, path: str, body: dict[str, object]) -> None:
        self.events = 0
        self._port, self._path = port, path
        self._body = json.dumps(body).encode()
        self._tasks: list[asyncio.Task[None]] = []

    def open(self, streams: int) -> None:
        """Begin this number of streams."""
        self._tasks = [asyncio.create_task(self._read()) for _ in range(streams)]

    async def _read(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(self._body)}\r\n\r\n".encode() + self._body)
            if b" 200 " not in (status := await reader.readline()):
                raise RuntimeError(f"{status!r}: {await reader.read(2000)!r}")
            while data := await reader.read(65536):
                self.events += data.count(b"\ndata: ")
        finally:
            writer.close()

    async def begun(self) -> None:
        """Wait until every stream has begun, on the average."""
        while self.events < 3 * len(self._tasks):
            await asyncio.sleep(0.05)
            for task in self._tasks:
                if task.done():
                    task.result()

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in ended:
            if not isinstance(end, asyncio.CancelledError):
                raise RuntimeError(f"a stream ended: {end!r}")


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def stub_server(tree: Path, pause: float, *flags: str) -> Iterator[tuple[int, int]]:
    """A server of this tree with stub engines: its process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = tree / ".venv/bin/python"
    command = [str(python) if python.exists() else sys.executable, str(Path(__file__).with_name("stub_server.py"))]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, str(pause), "--port", str(port), *flags],
            env={**os.environ, "PYTHONPATH": str(tree)},
            cwd=tree,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_ready(server, port, log)
            yield server.pid, port
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _wait_ready(server: "subprocess.Popen[bytes]", port: int, log: object) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    log.seek(0)  # type: ignore[attr-defined]
    raise RuntimeError(log.read().decode())  # type: ignore[attr-defined]


async def token_cost(pid: int, port: int, streams: int, seconds: float, chat: bool) -> float:
    """Microseconds of the process for a token of one of these streams."""
    body: dict[str, object] = {"stream": True, "max_tokens": 8000, "ignore_eos": True}
    body |= {"messages": [{"role": "user", "content": "Go on."}]} if chat else {"prompt": "Once upon a time"}
    clients = Clients(port, "/v1/chat/completions" if chat else "/v1/completions", body)
    clients.open(streams)
    await clients.begun()
    await asyncio.sleep(SETTLE_SECONDS)
    events, cpu = clients.events, cpu_seconds(pid)
    await asyncio.sleep(seconds)
    cost = (cpu_seconds(pid) - cpu) / (clients.events - events)
    await clients.close()
    await asyncio.sleep(0.3)
    return 1e6 * cost


async def run(trees: dict[str, Path], options: argparse.Namespace) -> None:
    """Measure in turn and print."""
    for streams in options.streams:
        pause = streams / options.rate
        costs: dict[str, list[float]] = {name: [] for name in trees}
        with _servers(trees, pause) as servers:
            for _ in range(options.rounds):
                for name, (pid, port) in servers.items():
                    costs[name].append(await token_cost(pid, port, streams, options.seconds, options.chat))
        medians = {name: statistics.median(values) for name, values in costs.items()}
        told = ", ".join(f"{name} {value:.1f} us a token" for name, value in medians.items())
        ratio = f"; ratio {medians['this'] / medians['before']:.2f}" if "before" in medians else ""
        print(f"{streams} streams, {options.rate:.0f} tokens/s: {told}{ratio}", flush=True)


@contextmanager
def _servers(trees: dict[str, Path], pause: float) -> Iterator[dict[str, tuple[int, int]]]:
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield {name: stack.enter_context(stub_server(tree, pause)) for name, tree in trees.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.streams", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rate", type=float, default=1500.0, help="tokens a second, of all streams together")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chat", action="store_true", help="of chat answers instead of completions")
    parser.add_argument("--against", type=Path, help="another tree, to be measured in turn")
    options = parser.parse_args(argv)
    trees = {"this": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    asyncio.run(run(trees, options))


if __name__ == "__main__":
    main()
