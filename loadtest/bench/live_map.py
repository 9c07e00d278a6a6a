"""What the live map costs an engine: its loop's processor time for the same work, with somebody who looks and without.

    python -m loadtest.bench.live_map                     # a minute with the embedded model on two cores

Starts `headrace serve` itself, on a free port of this machine. The two are measured in turn, round after round, and once more while
there is nothing to do.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass

from loadtest.bench.processes import engine_pid, thread_seconds
from loadtest.bench.speed import SpeedBench
from loadtest.bench.tiers import serving

IDLE_SECONDS = 4.0


@dataclass(slots=True)
class MapsSeen:
    """What a reader of the map was sent."""

    lines: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"{self.lines} maps of {self.size / max(self.lines, 1) / 1024:.1f} KiB"


@dataclass(slots=True)
class LoopShare:
    """Of a core, in percent, that the engine's loop took: while it worked, and while it had nothing to do."""

    busy: float
    idle: float


async def share(bench: SpeedBench, streams: int, tokens: int) -> LoopShare:
    """What the engine's loop takes for some streams, and then for none."""
    pid = engine_pid("engine")
    busy = await _taken(pid, asyncio.gather(*(bench.request(256, tokens) for _ in range(streams))))
    return LoopShare(busy, await _taken(pid, asyncio.sleep(IDLE_SECONDS)))


async def _taken(pid: int, work: Awaitable[object]) -> float:
    """Percent of a core that a process' main thread takes until the work is done."""
    cpu, began = thread_seconds(pid), time.perf_counter()
    await work
    return 100 * (thread_seconds(pid) - cpu) / (time.perf_counter() - began)


@asynccontextmanager
async def looked_at(bench: SpeedBench, seen: MapsSeen) -> AsyncIterator[None]:
    """Read the map for as long as the context lasts."""
    reader = asyncio.create_task(_read_map(bench, seen))
    await asyncio.sleep(0.5)
    try:
        yield
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read_map(bench: SpeedBench, seen: MapsSeen) -> None:
    async for line in bench.lines("/v1/map"):
        if '"map":{' in line:
            seen.lines += 1
            seen.size += len(line)


async def run(rounds: int, streams: int, tokens: int, blocks: int, seed: int) -> None:
    """Measure and print."""
    shares: dict[bool, list[LoopShare]] = {False: [], True: []}
    seen = MapsSeen()
    async with serving("--kv-blocks", str(blocks), seed=seed) as bench:
        for _ in range(rounds):
            for watched in (False, True):
                async with looked_at(bench, seen) if watched else nullcontext():
                    shares[watched].append(await share(bench, streams, tokens))
    print(f"{blocks} KV blocks, {streams} streams of {tokens} tokens; one reader: {seen}")
    for what in ("busy", "idle"):
        off, on = (statistics.median(getattr(each, what) for each in shares[watched]) for watched in (False, True))
        print(f"{what}: the engine's loop takes {off:.2f} % of a core, looked at {on:.2f} %: {on - off:+.2f}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.live_map", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure each [%(default)s]")
    parser.add_argument("--streams", type=int, default=8, help="that decode at once [%(default)s]")
    parser.add_argument("--tokens", type=int, default=120, help="of each stream [%(default)s]")
    parser.add_argument("--kv-blocks", type=int, default=2000, help="of the KV pool [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of all prompts [%(default)s]")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.rounds, options.streams, options.tokens, options.kv_blocks, options.seed))


if __name__ == "__main__":
    main()
