"""Processor time of the HTTP process for a streamed token, with engines that compute nothing.

    python -m server.bench.streams                                   # this tree, 64 and 256 streams
    python -m server.bench.streams --against ../before --rounds 5    # and another tree (with its .venv) in turn, and the ratio
    python -m server.bench.streams --http-processes 2                # and this tree with so many HTTP processes
    python -m server.bench.streams --streams 256 --lag               # how late this tree's event loop is, instead

What a token costs: the processor time of all the process's threads over a window in which nothing begins or ends, over the tokens
that its clients received meanwhile. The pace is that of `--rate`, which the machine has to be able to keep. Nothing is asserted.

With several HTTP processes the token's way leads through two: the server's own, which is one, and one of the others. No process has
more than a core, so as many tokens a second come through as the busiest one allows: that is compared, not what a machine that also
runs the clients and the stub engine happens to reach.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.bench.loop_lag import lags_between

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
def stub_server(tree: Path, pause: float, *flags: str, **variables: str) -> Iterator[tuple[int, int]]:
    """A server of this tree with stub engines: its process and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = tree / ".venv/bin/python"
    command = [str(python) if python.exists() else sys.executable, str(Path(__file__).with_name("stub_server.py"))]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, str(pause), "--port", str(port), *flags],
            env={**os.environ, "PYTHONPATH": str(tree), **variables},
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


@dataclass(frozen=True, slots=True)
class StreamedTokenCost:
    """Microseconds for a token: of the server's own process, and of all its HTTP processes together."""

    own: float
    fronts: float = 0.0
    processes: int = 0

    @property
    def busiest(self) -> float:
        """Of the process that has most to do."""
        return max(self.own, self.fronts / max(1, self.processes))

    def __str__(self) -> str:
        if not self.processes:
            return f"{self.own:.1f} us a token"
        return f"{self.own:.1f} us a token, and {self.fronts:.1f} in {self.processes} HTTP processes together"


def http_processes(server: int) -> list[int]:
    """Those of a server."""
    children = (int(child) for child in Path(f"/proc/{server}/task/{server}/children").read_text().split())
    return [child for child in children if b"server.fronts" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def token_cost(pid: int, port: int, streams: int, seconds: float, chat: bool) -> StreamedTokenCost:
    """Of the server's processes for a token of one of these streams."""
    fronts = http_processes(pid)
    clients = Clients(port, *asked(chat))
    clients.open(streams)
    await clients.begun()
    await asyncio.sleep(SETTLE_SECONDS)
    events, before = clients.events, [cpu_seconds(each) for each in (pid, *fronts)]
    await asyncio.sleep(seconds)
    after = [cpu_seconds(each) for each in (pid, *fronts)]
    tokens = clients.events - events
    own, *others = (1e6 * (late - early) / tokens for early, late in zip(before, after, strict=True))
    await clients.close()
    await asyncio.sleep(0.3)
    return StreamedTokenCost(own, sum(others), len(others))


def median_cost(costs: Sequence[StreamedTokenCost]) -> StreamedTokenCost:
    """Of several measurements."""
    own, fronts = (statistics.median(getattr(cost, name) for cost in costs) for name in ("own", "fronts"))
    return StreamedTokenCost(own, fronts, costs[0].processes)


async def run(trees: dict[str, Path], options: argparse.Namespace) -> None:
    """Measure in turn and print."""
    for streams in options.streams:
        pause = streams / options.rate
        with _servers(trees, pause, options.http_processes) as servers:
            costs: dict[str, list[StreamedTokenCost]] = {name: [] for name in servers}
            for _ in range(options.rounds):
                for name, (pid, port) in servers.items():
                    costs[name].append(await token_cost(pid, port, streams, options.seconds, options.chat))
        medians = {name: median_cost(values) for name, values in costs.items()}
        print(f"{streams} streams, {options.rate:.0f} tokens/s:", flush=True)
        for name, cost in medians.items():
            print(f"    {name}: {cost}", flush=True)
        if "before" in medians:
            print(f"    of before: {medians['this'].own / medians['before'].own:.2f}", flush=True)
        if "several" in medians:
            print(f"    tokens of several: {medians['this'].own / medians['several'].busiest:.2f} x", flush=True)


@contextmanager
def _servers(trees: dict[str, Path], pause: float, processes: int) -> Iterator[dict[str, tuple[int, int]]]:
    with ExitStack() as stack:
        servers = {name: stack.enter_context(stub_server(tree, pause)) for name, tree in trees.items()}
        if processes > 1:
            several = stub_server(trees["this"], pause, "--http-processes", str(processes))
            servers["several"] = stack.enter_context(several)
        yield servers


async def measure_lag(options: argparse.Namespace) -> None:
    """Print the lag of the server's event loop under so many streams, which begin beforehand."""
    for streams in options.streams:
        with (
            tempfile.NamedTemporaryFile() as file,
            stub_server(ROOT, streams / options.rate, LOOP_LAG=file.name) as (_, port),
        ):
            clients = Clients(port, *asked(options.chat))
            clients.open(streams)
            await clients.begun()
            await asyncio.sleep(SETTLE_SECONDS)
            start = time.monotonic()
            await asyncio.sleep(options.seconds * options.rounds)
            lags = lags_between(Path(file.name), start, time.monotonic())
            await clients.close()
        middle, late = lags[len(lags) // 2], lags[int(0.99 * len(lags))]
        told = f"lag of the event loop p50 {middle:.2f}, p99 {late:.2f}, most {lags[-1]:.2f} ms"
        print(f"{streams} streams, {options.rate:.0f} tokens/s: {told}", flush=True)


def asked(chat: bool) -> tuple[str, dict[str, object]]:
    """Path and body of a stream's request."""
    body: dict[str, object] = {"stream": True, "max_tokens": 8000, "ignore_eos": True}
    if chat:
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": "Go on."}]}
    return "/v1/completions", body | {"prompt": "Once upon a time"}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m server.bench.streams", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rate", type=float, default=1500.0, help="tokens a second, of all streams together")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--http-processes", type=int, default=1, help="of one more server of this tree, if there are several"
    )
    parser.add_argument("--chat", action="store_true", help="of chat answers instead of completions")
    parser.add_argument("--lag", action="store_true", help="measure how late the event loop is, instead")
    parser.add_argument("--against", type=Path, help="another tree, to be measured in turn")
    options = parser.parse_args(argv)
    trees = {"this": ROOT} | ({"before": options.against.resolve()} if options.against else {})
    asyncio.run(measure_lag(options) if options.lag else run(trees, options))


if __name__ == "__main__":
    main()
