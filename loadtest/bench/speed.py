"""How fast a server is, in a minute: decode with one stream and with several, prefill, and what a long prompt does to others.

    python -m loadtest.bench --url http://127.0.0.1:8000

Works with any OpenAI-compatible server that knows `ignore_eos`. Prompts are token ids drawn by seed, new in every case, so that
no prefix is cached. Figures are for one machine at one moment: compare only what ran side by side.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

SETTLED = 16  # tokens of each stream before the long prompt comes


@dataclass(slots=True)
class Timed:
    """One streamed request: when it was sent and when each of its tokens came, in seconds."""

    sent: float = 0.0
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds from sending to the first token."""
        return self.tokens[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between neighbouring tokens (inter-token latency)."""
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]


class SpeedBench:
    """The cases, against one server."""

    def __init__(self, client: httpx.AsyncClient, model: str, seed: int) -> None:
        self._client = client
        self._model = model
        self._random = random.Random(seed)

    @property
    def url(self) -> str:
        """Where the server is."""
        return str(self._client.base_url)

    def ids(self, count: int) -> list[int]:
        """`count` new random token ids."""
        return [self._random.randrange(1000, 30000) for _ in range(count)]

    async def get(self, path: str) -> httpx.Response:
        """The server's answer at `path`."""
        return await self._client.get(path)

    async def post(self, path: str, **content: Any) -> dict[str, Any]:
        """The JSON of the server's answer to what is sent to `path`: `json`, or `data` and `files` of a form.

        Raises:
            httpx.HTTPStatusError: it is refused.
        """
        answer = (await self._client.post(path, **content)).raise_for_status()
        return dict(answer.json())

    async def lines(self, path: str) -> AsyncIterator[str]:
        """The lines of an answer that goes on."""
        async with self._client.stream("GET", path) as answer:
            async for line in answer.aiter_lines():
                yield line

    async def request(self, prompt: int | Sequence[int], output_tokens: int, into: Timed | None = None) -> Timed:
        """Stream one completion; its times are recorded in `into` while it runs.

        Args:
            prompt: token ids, or the number of new ones.
            output_tokens: the exact length of the answer.
            into: where the times go; by default a new `Timed`.

        Raises:
            httpx.HTTPStatusError: it is refused.
            RuntimeError: it fails midway.
        """
        body = {
            "model": self._model,
            "prompt": self.ids(prompt) if isinstance(prompt, int) else list(prompt),
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        timed = into or Timed()
        timed.sent = time.perf_counter()
        async with self._client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                for choice in event["choices"]:
                    # The end may come with the last text, or in an event of its own, which is a token only if no other was.
                    if choice["finish_reason"] is None or choice["text"] or not timed.tokens:
                        timed.tokens.append(time.perf_counter())
        return timed

    async def decode(self, streams: int, prompt: int = 128, output: int = 64) -> str:
        """Output tokens per second over all streams, from the time when the last stream has its first token."""
        done = await asyncio.gather(*(self.request(prompt, output) for _ in range(streams)))
        begin = max(timed.tokens[0] for timed in done)
        end = min(timed.tokens[-1] for timed in done)
        counted = sum(begin < token <= end for timed in done for token in timed.tokens)
        # A token that ends inside a character comes with the next one: there are slightly fewer events than tokens.
        tokens_per_event = streams * output / sum(len(timed.tokens) for timed in done)
        return f"{counted * tokens_per_event / (end - begin):8.1f} tok/s"

    async def prefill(self, prompt: int) -> str:
        """Prompt tokens per second of one request."""
        timed = await self.request(prompt, 1)
        return f"{prompt / timed.ttft:8.1f} tok/s   (TTFT {timed.ttft:.2f} s)"

    async def interference(self, streams: int, prompt: int) -> str:
        """The longest gap between tokens of decoding streams while a long prompt is being computed."""
        timed = [Timed() for _ in range(streams)]
        running = [asyncio.create_task(self.request(64, 4096, into)) for into in timed]
        try:
            while min(len(each.tokens) for each in timed) < SETTLED:
                await asyncio.sleep(0.01)
                for task in running:
                    if task.done():
                        task.result()
            arrived = time.perf_counter()
            long = await self.request(prompt, 1)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        before: list[float] = []
        during: list[float] = []
        for each in timed:
            for at, gap in zip(each.tokens[1:], each.gaps, strict=True):
                (during if arrived <= at <= long.tokens[0] else before).append(gap)
        usual = f"{1e3 * statistics.median(before):.0f} ms" if before else "-"
        longest = f"{1e3 * max(during):.0f} ms" if during else "-"
        return f"longest gap {longest}, usual {usual}   (TTFT of the {prompt} tokens: {long.ttft:.2f} s)"


async def run(url: str, model: str, seed: int, rounds: int) -> None:
    """Print one line for each case and round."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        bench = SpeedBench(client, model, seed)
        await bench.request(8, 2)
        for _ in range(rounds):
            print(f"decode, 1 stream              {await bench.decode(1)}", flush=True)
            print(f"decode, 8 streams             {await bench.decode(8)}", flush=True)
            print(f"decode, 32 streams            {await bench.decode(32, output=128)}", flush=True)
            print(f"prefill, 512 tokens           {await bench.prefill(512)}", flush=True)
            print(f"prefill, 4,000 tokens         {await bench.prefill(4000)}", flush=True)
            print(f"4,000 tokens beside 8 streams {await bench.interference(8, 4000)}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench", description="Speed of a server, in a minute.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server [%(default)s]")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="the model's name [%(default)s]")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the prompts; those of a new seed are never cached [%(default)s]"
    )
    parser.add_argument("--rounds", type=int, default=1, help="how often to repeat [%(default)s]")
    options = parser.parse_args(arguments)
    asyncio.run(run(options.url.rstrip("/").removesuffix("/v1"), options.model, options.seed, options.rounds))
