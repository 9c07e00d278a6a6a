"""What servers are asked, and the one figure that tells how well each did."""

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import httpx

# Plain words, a token each in most vocabularies. Servers get them as text: not all take token ids.
_WORDS = (  # noqa: SIM905
    "river mountain engine market history ocean garden teacher planet winter bridge music letter science village kitchen "
    "painter forest window machine doctor summer castle animal story color number travel friend morning"
).split()
FIGURES = {
    "decode": "tokens/s of a stream after its first",
    "output": "tokens/s of all streams",
    "ttft": "seconds to the first token",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests of one kind, greedy, each of fresh words.

    Attributes:
        requests: how many.
        at_once: at most.
        words: of each prompt that are its own.
        shared: words that all prompts begin with.
        output: tokens of each answer.
        figure: what is told of it, a key of `FIGURES`; of `ttft` less is better.
    """

    requests: int
    at_once: int
    words: int
    shared: int = 0
    output: int
    figure: str

    def __str__(self) -> str:
        many = (
            f"{self.requests} prompts, {self.at_once} at once" if self.at_once > 1 else f"{self.requests} x one stream"
        )
        shared = f"{self.shared:,} shared words + " if self.shared else ""
        return f"{many}, {shared}{self.words:,} words in, {self.output} tokens out: {FIGURES[self.figure]}"

    def prompts(self, seed: int) -> list[str]:
        """The prompts of a round, the same for each server in it."""
        rng = random.Random(seed)
        head = rng.choices(_WORDS, k=self.shared)
        return [" ".join([*head, *rng.choices(_WORDS, k=self.words)]) for _ in range(self.requests)]

    def better(self, one: float, other: float) -> float:
        """How many times as good `one` is as `other`."""
        return other / one if self.figure == "ttft" else one / other


WORKLOADS = {
    "W1": Workload(requests=5, at_once=1, words=128, output=128, figure="decode"),
    "W2": Workload(requests=32, at_once=8, words=256, output=128, figure="output"),
    "W3": Workload(requests=96, at_once=32, words=256, output=64, figure="output"),
    "W4": Workload(requests=32, at_once=8, words=64, shared=1024, output=32, figure="output"),
    "W5": Workload(requests=3, at_once=1, words=3600, output=16, figure="ttft"),
    "Q1": Workload(requests=2, at_once=1, words=110, output=64, figure="decode"),
    "Q2": Workload(requests=8, at_once=8, words=110, output=32, figure="output"),
    "Q5": Workload(requests=1, at_once=1, words=900, output=2, figure="ttft"),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds to its first token, seconds a token after that, and its tokens by the server's usage."""

    ttft: float
    tpot: float
    tokens: int


def figure(name: str, answers: Sequence[Answer], seconds: float) -> float:
    """One of `FIGURES` of answers that took `seconds` together."""
    if name == "ttft":
        return mean(each.ttft for each in answers)
    if name == "decode":
        return 1 / mean(each.tpot for each in answers)
    return sum(each.tokens for each in answers) / seconds


async def measure(target: str, workload: Workload, prompts: Sequence[str]) -> float:
    """Ask the server at `target` (base URL of its API) all of it. Returns the workload's figure.

    Raises:
        httpx.HTTPError: a request is refused, or its connection breaks.
        ValueError: a request fails midway, or an answer has not as many tokens as were asked for.
    """
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=target, timeout=900, limits=limits) as client:
        model = (await client.get("/models")).raise_for_status().json()["data"][0]["id"]
        waiting = iter(prompts)
        answers: list[Answer] = []

        async def user() -> None:
            for prompt in waiting:
                answers.append(await ask(client, model, prompt, workload.output))

        began = time.perf_counter()
        users = [asyncio.create_task(user()) for _ in range(workload.at_once)]
        try:
            await asyncio.gather(*users)
        finally:  # one that fails ends all
            for each in users:
                each.cancel()
            await asyncio.wait(users)
        seconds = time.perf_counter() - began
    return figure(workload.figure, answers, seconds)


async def ask(client: httpx.AsyncClient, model: str, prompt: str, output: int) -> Answer:
    """Stream one greedy completion of `output` tokens. See `measure` for what it raises."""
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": output,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sent, times, tokens = time.perf_counter(), [], None
    async with client.stream("POST", "/completions", json=body) as response:
        if response.is_error:
            await response.aread()
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        async for line in response.aiter_lines():
            if not line.startswith("data:") or line.endswith("[DONE]"):
                continue
            event = json.loads(line[5:])
            if "error" in event:
                raise ValueError(str(event["error"]))
            times += [time.perf_counter() for choice in event["choices"] if choice["text"]]
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if tokens != output or not times:
        raise ValueError(f"asked for {output} tokens, its usage says {tokens}")
    return Answer(times[0] - sent, (times[-1] - times[0]) / max(1, output - 1), output)
