"""Engines on two nodes of a Ray cluster on this machine: what the other node's KV is worth, and what the death of a node costs.

    python -m loadtest.bench.nodes prefix                  # TTFT of a prefix that the other node has, against computing it
    python -m loadtest.bench.nodes prefix --transfer nixl  # the same by NIXL; UCX_TLS=tcp has it go over the network
    python -m loadtest.bench.nodes deaths --seconds 600    # load on two engines of each node, of which one is killed twice

Starts cluster and server itself. Needs the extra `ray`, and for NIXL `nixl`. Both nodes share this machine's cores: ratios only.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from loadtest.bench.ray_nodes import RayNodes
from loadtest.bench.speed import SpeedBench
from loadtest.bench.tiers import serving
from loadtest.report.quantiles import quantile

NEW = 16  # tokens of a prompt after the shared ones
KNOWN_SECONDS = 3.0  # until what one node has saved is known on the other
PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 12, 256, 64
AWAY = 1 / 6  # of the time, for which a killed node is away


async def cards(bench: SpeedBench) -> dict[str, str]:
    """The state of each engine by its name."""
    return {card["id"]: card["state"] for card in (await bench.get("/v1/engines")).json()["data"]}


async def ready(bench: SpeedBench) -> None:
    """Wait for all engines."""
    while set((await cards(bench)).values()) != {"ready"}:
        await asyncio.sleep(0.2)


async def prefix(nodes: RayNodes, transfer: str, rounds: int, tokens: int) -> str:
    """Each round: computed on one node, then asked for on the other."""
    flags = ("--ray", nodes.address, "--engines", "2", "--kv-blocks", "300", "--kv-host-gib", "1")
    computed, loaded, cached = list[float](), list[float](), 0.0
    async with serving(*flags, "--kv-transfer", transfer, seed=1) as bench:
        await ready(bench)
        for number in range(rounds + 1):
            ids = bench.ids(tokens)
            there, here = (f"engine-{(number + side) % 2}" for side in (0, 1))
            for other, into in ((here, computed), (there, loaded)):
                await bench.post(f"/v1/engines/{other}/drain")
                took = (await bench.request([*ids, *bench.ids(NEW)], 1)).ttft
                await bench.post(f"/v1/engines/{other}/undrain")
                if number:  # the first round connects, and measures how long it takes
                    into.append(took)
                await asyncio.sleep(KNOWN_SECONDS)
        cached = await _blocks(bench)
    ratio = statistics.median(computed) / statistics.median(loaded)
    return (
        f"prefix of {tokens} tokens, {transfer}: computed {statistics.median(computed):.3f} s, from the other node "
        f"{statistics.median(loaded):.3f} s: {ratio:.1f} times sooner (at least 4, aim 10); {cached:.0f} blocks loaded"
    )


async def _blocks(bench: SpeedBench) -> float:
    lines = (await bench.get("/metrics")).text.splitlines()
    wanted = "headrace_kv_tier_loaded_blocks_total"
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(wanted) and 'tier="peer"' in line)


@dataclass
class DeathLoad:
    """Streams that are asked for again and again, and what came of them."""

    client: httpx.AsyncClient
    prompts: Sequence[Sequence[int]]
    expected: list[str] = field(default_factory=list)
    ended: int = 0
    wrong: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)  # the longest of each stream

    async def learn(self) -> None:
        """What each prompt's answer is, with nobody beside it."""
        for number in range(len(self.prompts)):
            self.expected.append((await self._streamed(number))[0])

    async def keep_asking(self, first: int, until: float) -> None:
        """One after the other."""
        number = first
        while time.monotonic() < until:
            number = (number + 1) % len(self.prompts)
            try:
                text, pause = await self._streamed(number)
            except (httpx.HTTPError, ValueError) as error:
                self.wrong.append(f"lost: {type(error).__name__}: {error}")
                continue
            self.ended += 1
            self.pauses.append(pause)
            if text != self.expected[number]:
                self.wrong.append(f"prompt {number}: another text")

    async def _streamed(self, number: int) -> tuple[str, float]:
        body = {"prompt": self.prompts[number], "max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True}
        text, pause, last = "", 0.0, None
        async with self.client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event, now = json.loads(line.removeprefix("data: ")), time.monotonic()
                if "error" in event:
                    raise ValueError(event["error"]["message"])
                text += "".join(choice["text"] for choice in event["choices"])
                pause, last = max(pause, now - (last or now)), now
        return text, pause


async def deaths(nodes: RayNodes, seconds: float, streams: int) -> str:
    """A third of the time, then a node is killed, and is back after a while; and once more."""
    flags = ("--ray", nodes.address, "--engines", "4", "--kv-blocks", "200", "--kv-host-gib", "0.25")
    async with serving(*flags, seed=2) as bench:
        await ready(bench)
        prompts = [bench.ids(PROMPT_TOKENS) for _ in range(PROMPTS)]
        async with httpx.AsyncClient(base_url=bench.url, timeout=300) as client:
            load = DeathLoad(client, prompts)
            await load.learn()
            began = time.monotonic()
            until = began + seconds
            asking = [asyncio.create_task(load.keep_asking(number, until)) for number in range(streams)]
            killed = 0
            for death in (1, 2):
                await asyncio.sleep(max(0.0, began + death * seconds / 3 - time.monotonic()))
                killed += await asyncio.to_thread(nodes.kill_other)
                print(f"{time.monotonic() - began:.0f} s: killed; {load.ended} requests so far", flush=True)
                await asyncio.sleep(seconds * AWAY)
                await asyncio.to_thread(nodes.start_other)
            await asyncio.gather(*asking)
        states = await cards(bench)
    for each in load.wrong[:10]:
        print(each)
    return (
        f"{seconds:.0f} s of {streams} streams over 4 engines on 2 nodes, one killed twice ({killed} processes): "
        f"{load.ended} requests, {len(load.wrong)} lost or with another text (0); longest pause of a stream: p99 "
        f"{quantile(load.pauses, 0.99):.2f} s, most {max(load.pauses, default=0.0):.2f} s; engines {states}"
    )


def main() -> None:
    """Run one of the two, and print a line."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench.nodes", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("prefix", "deaths"))
    parser.add_argument("--transfer", choices=("curve", "nixl"), default="curve", help="how KV goes from node to node")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4000, help="of the prefix")
    parser.add_argument("--seconds", type=float, default=600.0, help="of load")
    parser.add_argument("--streams", type=int, default=8)
    options = parser.parse_args()
    nodes = RayNodes(cpus=1 if options.what == "prefix" else 2)
    try:
        if options.what == "prefix":
            print(asyncio.run(prefix(nodes, options.transfer, options.rounds, options.tokens)))
        else:
            print(asyncio.run(deaths(nodes, options.seconds, options.streams)))
    finally:
        nodes.close()


if __name__ == "__main__":
    main()
