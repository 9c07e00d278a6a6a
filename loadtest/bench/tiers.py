"""What KV tiers below the device gain, and what they cost: each case beside the same server without them.

    python -m loadtest.bench.tiers                     # all cases, some five minutes with the embedded model on two cores
    python -m loadtest.bench.tiers --only host,chat --rounds 5

Starts `headrace serve` itself, on a free port of this machine. Ratios and medians only: machines are noisy.
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx

from loadtest.bench.speed import SpeedBench, Timed
from loadtest.report.quantiles import quantile

MODEL = "SmolLM2-135M-Instruct"
NEW = 96  # tokens of a prompt after the shared ones
START_SECONDS = 120.0
_URL = re.compile(r"listens on (http://\S+)")


@asynccontextmanager
async def serving(*flags: str, seed: int) -> AsyncIterator[SpeedBench]:
    """A ready server with these flags; it ends with the context.

    Raises:
        RuntimeError: it does not start.
    """
    command = [str(Path(sys.executable).with_name("headrace")), "serve", "--port", "0", *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            url = await _url(process, Path(f"/proc/{os.getpid()}/fd/{log.fileno()}"))
            async with httpx.AsyncClient(base_url=url, timeout=600) as client:
                bench = SpeedBench(client, MODEL, seed)
                await bench.request(40, 2)
                yield bench
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 60)


async def _url(process: "subprocess.Popen[str]", log: Path) -> str:
    for _ in range(int(START_SECONDS * 20)):
        if match := _URL.search(log.read_text()):
            return match[1].rstrip(".")
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{log.read_text()}")
        await asyncio.sleep(0.05)
    raise RuntimeError(f"no server after {START_SECONDS:.0f} s:\n{log.read_text()}")


async def tier_metrics(bench: SpeedBench) -> dict[str, float]:
    """The metrics of the tiers, by name and labels."""
    text = (await bench.get("/metrics")).text
    rows = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("headrace_kv_tier"))
    return {name.removeprefix("headrace_kv_tier_"): float(value) for name, value in rows}


async def settled(bench: SpeedBench) -> None:
    """Wait until nothing is being saved any more."""
    last = None
    while (now := (await tier_metrics(bench))) != last:
        last = now
        await asyncio.sleep(1.0)


def per_copy(metrics: dict[str, float], tier: str) -> str:
    """Blocks saved and loaded, and how many travelled in one copy on average."""
    words = []
    for done, direction in (("saved", "save"), ("loaded", "load")):
        blocks = metrics.get(f'{done}_blocks_total{{tier="{tier}"}}', 0.0)
        copies = metrics.get(f'copies_total{{direction="{direction}",tier="{tier}"}}', 0.0)
        words.append(f"{done} {blocks:.0f} blocks, {blocks / copies if copies else 0:.1f} a copy")
    return "; ".join(words)


class Cases:
    """The cases. Each prints a line of figures."""

    def __init__(self, rounds: int, seed: int, tokens: int, blocks: int) -> None:
        self.rounds = rounds
        self.seed = seed
        self.tokens = tokens  # shared by prompts
        self.pool = ("--kv-blocks", str(blocks))

    async def host(self) -> str:
        """TTFT of a prompt whose prefix the pool had no room for: loaded from the host, against computed."""
        cold, warm = [], []
        async with serving(*self.pool, "--kv-host-gib", "1.5", seed=self.seed) as bench:
            for _ in range(self.rounds):
                prefix = bench.ids(self.tokens)
                cold.append((await self._ask(bench, prefix)).ttft)
                for _ in range(3):
                    await bench.request(self.tokens + NEW, 1)
                await settled(bench)
                warm.append((await self._ask(bench, prefix)).ttft)
            moved = per_copy(await tier_metrics(bench), "host")
        return f"{_versus(cold, warm, 's')}; {moved}"

    async def disk(self) -> str:
        """The same from disk after a restart, with nothing of the folder in the page cache."""
        cold, warm, prefixes = [], [], []
        with tempfile.TemporaryDirectory(dir=os.environ.get("TIER_BENCH_DIR")) as folder:
            flags = (*self.pool, "--kv-disk-path", folder)
            async with serving(*flags, seed=self.seed) as bench:
                for _ in range(self.rounds):
                    prefixes.append(bench.ids(self.tokens))
                    cold.append((await self._ask(bench, prefixes[-1])).ttft)
                    await settled(bench)
            _drop_page_cache(Path(folder))
            async with serving(*flags, seed=self.seed + 1) as bench:
                for prefix in prefixes:
                    warm.append((await self._ask(bench, prefix)).ttft)
                moved = per_copy(await tier_metrics(bench), "disk")
        return f"{_versus(cold, warm, 's')}; {moved}"

    async def chat(self) -> str:
        """64 conversations of 6 turns, 8 at a time, over a pool that holds 8: total time without tiers against with the host's."""
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        moved = ""
        for round_ in range(self.rounds):
            for name, flags in (("without", ()), ("with", ("--kv-host-gib", "2"))):
                async with serving("--kv-blocks", "152", *flags, seed=self.seed + round_) as bench:
                    began = time.perf_counter()
                    await self._converse(bench)
                    seconds[name].append(time.perf_counter() - began)
                    moved = per_copy(await tier_metrics(bench), "host")
        return f"{_versus(seconds['without'], seconds['with'], 's')}; {moved}"

    async def gaps(self) -> str:
        """p99 of the gaps between tokens of 8 streams while 1 GiB is loaded, against the same requests with KV on the device."""
        p99: dict[str, list[float]] = {"resident": [], "moved": []}
        moved = ""
        for round_ in range(self.rounds):
            for name, flags in (("resident", ("--kv-blocks", "1200")), ("moved", ("--kv-blocks", "380"))):
                async with serving(*flags, "--kv-host-gib", "1.5", seed=self.seed + round_) as bench:
                    p99[name].append(await self._beside_streams(bench))
                    moved = per_copy(await tier_metrics(bench), "host")
        return f"{_versus(p99['moved'], p99['resident'], 's')} (at most 1.3); {moved}"

    async def unique(self) -> str:
        """Time for 32 prompts that nobody repeats: with both tiers against without any."""
        seconds: dict[str, list[float]] = {"without": [], "with": []}
        with tempfile.TemporaryDirectory(dir=os.environ.get("TIER_BENCH_DIR")) as folder:
            tiers = ("--kv-host-gib", "0.3", "--kv-disk-path", folder, "--kv-disk-gib", "1")
            async with (
                serving("--kv-blocks", "300", seed=self.seed) as plain,
                serving("--kv-blocks", "300", *tiers, seed=self.seed) as tiered,
            ):
                for _ in range(2 * self.rounds + 1):
                    for name, bench in (("without", plain), ("with", tiered)):
                        began = time.perf_counter()
                        await _some_at_once(8, [partial(bench.request, 512, 64)] * 32)
                        seconds[name].append(time.perf_counter() - began)
                        await settled(bench)  # what is still being saved would slow down the other server
                moved = await tier_metrics(tiered)
        saved = "; ".join(f"{tier}: {per_copy(moved, tier)}" for tier in ("host", "disk"))
        # The first round touches fresh memory, which happens once per block and is not the steady state.
        return f"{_versus(seconds['with'][1:], seconds['without'][1:], 's')} (at most 1.03); {saved}"

    async def _ask(self, bench: SpeedBench, prefix: Sequence[int]) -> Timed:
        return await bench.request([*prefix, *bench.ids(NEW)], 1)

    async def _converse(self, bench: SpeedBench) -> None:
        talks = [bench.ids(256) for _ in range(64)]
        for _ in range(6):

            async def turn(talk: list[int]) -> None:
                talk += bench.ids(40)
                await bench.request(talk, 16)
                talk += bench.ids(16)  # stands for the answer: what was generated is not sent again

            await _some_at_once(8, [partial(turn, talk) for talk in talks])

    async def _beside_streams(self, bench: SpeedBench) -> float:
        prefixes = [bench.ids(self.tokens) for _ in range(4)]
        for prefix in prefixes:
            await self._ask(bench, prefix)
        await settled(bench)
        streams = [Timed() for _ in range(8)]
        running = [asyncio.create_task(bench.request(64, 1200, into)) for into in streams]
        while min(len(stream.tokens) for stream in streams) < 16:
            await asyncio.sleep(0.01)
        began = time.perf_counter()
        for _ in range(4):
            for prefix in prefixes:
                await self._ask(bench, prefix)
        ended = time.perf_counter()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        gaps = [
            gap
            for stream in streams
            for at, gap in zip(stream.tokens[1:], stream.gaps, strict=True)
            if began <= at <= ended
        ]
        return quantile(gaps, 0.99)


async def _some_at_once(width: int, work: Sequence[Callable[[], Awaitable[object]]]) -> None:
    """Do all of it, at most `width` at a time, in order."""
    pending = iter(work)

    async def worker() -> None:
        for item in pending:
            await item()

    await asyncio.gather(*(worker() for _ in range(width)))


def _versus(one: Sequence[float], other: Sequence[float], unit: str) -> str:
    first, second = statistics.median(one), statistics.median(other)
    return f"{first:.3f} {unit} against {second:.3f} {unit}: {first / second:.2f} x"


def _drop_page_cache(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    cases = ("host", "disk", "chat", "gaps", "unique")
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.tiers", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(cases), help="cases, separated by commas [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="how often to repeat each [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of all prompts [%(default)s]")
    parser.add_argument(
        "--tokens", type=int, default=4000, help="shared by prompts, in host, disk and gaps [%(default)s]"
    )
    parser.add_argument("--kv-blocks", type=int, default=300, help="of the pool, in host and disk [%(default)s]")
    options = parser.parse_args(arguments)
    asked = options.only.split(",")
    if unknown := set(asked) - set(cases):
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(cases)}")
    for name in asked:
        line = asyncio.run(getattr(Cases(options.rounds, options.seed, options.tokens, options.kv_blocks), name)())
        print(f"{name:7} {line}", flush=True)


if __name__ == "__main__":
    main()
