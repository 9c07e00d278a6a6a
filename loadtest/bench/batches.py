"""What a running batch does to those who wait: time to first token beside it, against without.

    python -m loadtest.bench.batches                      # some four minutes with the embedded model on two cores
    python -m loadtest.bench.batches --requests 50 --rounds 4

Starts `headrace serve` itself, on a free port of this machine, with a folder for batches. Requests come one after the other with
pauses between, in turn without a batch and beside one, round after round on the same server.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from loadtest.bench.disaggregation import metrics
from loadtest.bench.speed import SpeedBench
from loadtest.bench.tiers import MODEL, serving
from loadtest.report.quantiles import quantile

PROMPT, OUTPUT = 180, 4  # tokens of a request
PAUSE = (0.05, 0.15)  # seconds between two requests
LINES, LINE_OUTPUT = 4000, 100  # more than can end while one looks
SETTLED_SECONDS = 2.0
ENDPOINT = "/v1/completions"


def input_file() -> bytes:
    """The lines of a batch, as JSON."""
    bodies = (
        {"model": MODEL, "prompt": f"Tell me of {i}", "max_tokens": LINE_OUTPUT, "ignore_eos": True}
        for i in range(LINES)
    )
    lines = ({"custom_id": f"{i}", "method": "POST", "url": ENDPOINT, "body": body} for i, body in enumerate(bodies))
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def uploaded(bench: SpeedBench) -> str:
    """The id of the input file."""
    form = {"files": {"file": ("in.jsonl", input_file())}, "data": {"purpose": "batch"}}
    return str((await bench.post("/v1/files", **form))["id"])


@asynccontextmanager
async def running_batch(bench: SpeedBench, file: str) -> AsyncIterator[None]:
    """A batch of this file runs as long as the context lasts, and nothing of it afterwards."""
    asked = {"input_file_id": file, "endpoint": ENDPOINT, "completion_window": "24h"}
    batch = (await bench.post("/v1/batches", json=asked))["id"]
    while not (await metrics(bench))["idle_sequences_running"]:
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLED_SECONDS)
    yield
    await bench.post(f"/v1/batches/{batch}/cancel")
    while (await bench.get(f"/v1/batches/{batch}")).json()["status"] != "cancelled":
        await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLED_SECONDS)


async def first_tokens(bench: SpeedBench, requests: int, pauses: random.Random) -> list[float]:
    """Seconds to the first token of requests that come one after the other."""
    times = []
    for _ in range(requests):
        times.append((await bench.request(PROMPT, OUTPUT)).ttft)
        await asyncio.sleep(pauses.uniform(*PAUSE))
    return times


def p99(values: Sequence[float]) -> float:
    """The 99th percentile."""
    return quantile(values, 0.99)


def _told(name: str, times: Sequence[float]) -> None:
    shown = ((what, 1e3 * of(times)) for what, of in (("median", statistics.median), ("p99", p99), ("longest", max)))
    print(
        f"{name:15} TTFT of {len(times)}: " + ", ".join(f"{what} {value:.0f} ms" for what, value in shown), flush=True
    )


async def run(rounds: int, requests: int, seed: int, flags: Sequence[str]) -> None:
    """Measure, and print."""
    pauses, without, beside = random.Random(seed), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        async with serving("--data-dir", folder, *flags, seed=seed) as bench:
            file = await uploaded(bench)
            await first_tokens(bench, 5, pauses)
            lines, seconds = 0.0, 0.0
            for _ in range(rounds):
                without += await first_tokens(bench, requests, pauses)
                async with running_batch(bench, file):
                    before, began = await metrics(bench), asyncio.get_running_loop().time()
                    beside += await first_tokens(bench, requests, pauses)
                    seconds += asyncio.get_running_loop().time() - began
                    lines += _generated(await metrics(bench)) - _generated(before) - OUTPUT * requests
    _told("without a batch", without)
    _told("beside a batch", beside)
    print(f"the batch       {lines / seconds:.1f} tok/s meanwhile")
    print(f"ratio           median {_ratio(statistics.median, beside, without)}, p99 {_ratio(p99, beside, without)}")


def _generated(found: dict[str, float]) -> float:
    return found["generation_tokens_total"]


def _ratio(of: Any, beside: Sequence[float], without: Sequence[float]) -> str:
    return f"{of(beside) / of(without):.2f} x"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.batches", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--requests", type=int, default=30, help="without a batch and beside one, in each round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("flags", nargs="*", help="of the server, behind `--`")
    given = parser.parse_args(argv)
    asyncio.run(run(given.rounds, given.requests, given.seed, given.flags or ["--kv-blocks", "600"]))


if __name__ == "__main__":
    main()
