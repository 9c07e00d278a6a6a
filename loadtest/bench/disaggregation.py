"""What a prefill and a decode engine gain over mixed ones, what a hand-over costs, and how soon a stream is back after a death.

    python -m loadtest.bench.disaggregation                     # all cases, some five minutes with the embedded model on two cores
    python -m loadtest.bench.disaggregation --only hand-over,recovery --rounds 3

    hand-over   TTFT and second token of a 4,000-token prompt that is handed over, against one that stays in a mixed engine
    gaps        p99 of the gaps between tokens of 8 streams while 4,000-token prompts arrive one after the other: an engine for
                prompts and one for decodes, against two mixed ones
    recovery    from kill -9 of an engine to the next token of a stream with 2,000 known tokens: KV protected, against recomputed

Starts `headrace serve` itself, on a free port of this machine; each engine has an equal part of the cores. Ratios and medians only:
machines are noisy.
"""

import argparse
import asyncio
import os
import signal
import statistics
import time
from collections.abc import Sequence

from loadtest.bench.processes import engine_pid
from loadtest.bench.speed import SpeedBench, Timed
from loadtest.bench.tiers import serving
from loadtest.report.quantiles import quantile

SETTLED = 16  # tokens of each stream before anything happens
POOL = ("--kv-blocks", "600", "--kv-host-gib", "1")
APART = ("--roles", "prefill:1,decode:1", *POOL)
MIXED = ("--roles", "mixed:2", *POOL)


async def ready(bench: SpeedBench) -> None:
    """Wait until all engines are, and have computed enough to know what prompts cost."""
    while any(card["state"] != "ready" for card in (await bench.get("/v1/engines")).json()["data"]):
        await asyncio.sleep(0.1)
    for _ in range(2):
        await asyncio.gather(*(bench.request(600, 2) for _ in range(4)))


async def metrics(bench: SpeedBench) -> dict[str, float]:
    """The server's metrics, by name and labels."""
    rows = (
        line.rsplit(" ", 1) for line in (await bench.get("/metrics")).text.splitlines() if line[:1] not in ("", "#")
    )
    return {name.removeprefix("headrace_"): float(value) for name, value in rows}


async def outcomes(bench: SpeedBench) -> str:
    """What came of hand-overs, in words."""
    found = {name: value for name, value in (await metrics(bench)).items() if name.startswith("hand_overs_total{")}
    counts = (f"{_label(name)} {value:.0f}" for name, value in found.items() if value)
    return ", ".join(counts) or "no hand-overs"


def _label(series: str) -> str:
    """The value of its only label."""
    return series.split('"')[1]


class ApartCases:
    """The cases. Each prints a line of figures."""

    def __init__(self, rounds: int, seed: int, tokens: int) -> None:
        self.rounds = rounds
        self.seed = seed
        self.tokens = tokens  # of a long prompt

    async def hand_over(self) -> str:
        """TTFT and second-token gap of a long prompt on an idle server."""
        first: dict[str, list[float]] = {"apart": [], "mixed": []}
        second: dict[str, list[float]] = {"apart": [], "mixed": []}
        async with serving(*APART, seed=self.seed) as apart, serving(*MIXED, seed=self.seed) as mixed:
            for bench in (apart, mixed):
                await ready(bench)
            for _ in range(self.rounds):
                for name, bench in (("apart", apart), ("mixed", mixed)):
                    timed = await bench.request(self.tokens, 8)
                    first[name].append(timed.ttft)
                    second[name].append(timed.gaps[0])
            said = await outcomes(apart)
        ttft, gap = (_versus(each["apart"], each["mixed"]) for each in (first, second))
        return f"TTFT {ttft} (at most 1.10); second token {gap}; {said}"

    async def gaps(self) -> str:
        """p99 of the gaps of streams that decode while prompts arrive."""
        p99: dict[str, list[float]] = {"apart": [], "mixed": []}
        said = ""
        for round_ in range(self.rounds):
            for name, flags in (("apart", APART), ("mixed", MIXED)):
                async with serving(*flags, seed=self.seed + round_) as bench:
                    await ready(bench)
                    p99[name].append(await self._beside_prompts(bench))
                    said = await outcomes(bench) if name == "apart" else said
        return f"{_versus(p99['apart'], p99['mixed'])} (at most 0.6); {said}"

    async def _beside_prompts(self, bench: SpeedBench) -> float:
        streams, running = await _streams(bench, 8)
        began = time.perf_counter()
        for _ in range(3):
            await bench.request(self.tokens, 4)
        ended = time.perf_counter()
        await _end(running)
        gaps = [
            gap
            for stream in streams
            for at, gap in zip(stream.tokens[1:], stream.gaps, strict=True)
            if began <= at <= ended
        ]
        return quantile(gaps, 0.99)

    async def recovery(self) -> str:
        """From the death of an engine to the next token of its stream, which another goes on with."""
        seconds: dict[str, list[float]] = {"protected": [], "recomputed": []}
        for round_ in range(self.rounds):
            for name, flags in (("protected", ("--protect-kv", *POOL)), ("recomputed", ("--kv-blocks", "600"))):
                async with serving("--engines", "2", *flags, seed=self.seed + round_) as bench:
                    await ready(bench)
                    seconds[name].append(await self._death(bench))
        ratio = statistics.median(seconds["recomputed"]) / statistics.median(seconds["protected"])
        return f"{_versus(seconds['protected'], seconds['recomputed'])}: {ratio:.1f} times sooner (at least 3)"

    async def _death(self, bench: SpeedBench) -> float:
        """Seconds without a token; what is known then is as long as half a long prompt."""
        steps = await _steps(bench)
        (stream,), running = await _streams(bench, 1, prompt=self.tokens // 2 - 100)
        while len(stream.tokens) < 100:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.5)  # engines that share a tier ask each second what others put there
        grown = {name: count - steps[name] for name, count in (await _steps(bench)).items()}
        os.kill(engine_pid(max(grown, key=lambda name: grown[name])), signal.SIGKILL)
        killed, before = time.perf_counter(), len(stream.tokens)
        while len(stream.tokens) < before + 8:  # what had been sent before it died may still come
            await asyncio.sleep(0.005)
        await _end(running)
        return max(stream.gaps[before - 2 :]) if stream.tokens[-1] > killed else 0.0


async def _steps(bench: SpeedBench) -> dict[str, float]:
    found = await metrics(bench)
    return {_label(name): value for name, value in found.items() if name.startswith("steps_total{")}


async def _streams(bench: SpeedBench, count: int, prompt: int = 64) -> tuple[list[Timed], list["asyncio.Task[Timed]"]]:
    """So many streams that have settled, and the tasks that read them."""
    timed = [Timed() for _ in range(count)]
    running = [asyncio.create_task(bench.request(prompt, 4000, into)) for into in timed]
    while min(len(each.tokens) for each in timed) < SETTLED:
        await asyncio.sleep(0.01)
        for task in running:
            if task.done():
                task.result()
    return timed, running


async def _end(running: Sequence["asyncio.Task[Timed]"]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def _versus(one: Sequence[float], other: Sequence[float]) -> str:
    first, second = statistics.median(one), statistics.median(other)
    return f"{first:.3f} s against {second:.3f} s: {first / second:.2f} x"


CASES = {"hand-over": ApartCases.hand_over, "gaps": ApartCases.gaps, "recovery": ApartCases.recovery}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.disaggregation", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--only", default=",".join(CASES), help="cases, separated by commas [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="how often to repeat each [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of all prompts [%(default)s]")
    parser.add_argument("--tokens", type=int, default=4000, help="of a long prompt [%(default)s]")
    options = parser.parse_args(arguments)
    asked = options.only.split(",")
    if unknown := set(asked) - CASES.keys():
        parser.error(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(CASES)}")
    for name in asked:
        line = asyncio.run(CASES[name](ApartCases(options.rounds, options.seed, options.tokens)))
        print(f"{name:9} {line}", flush=True)


if __name__ == "__main__":
    main()
