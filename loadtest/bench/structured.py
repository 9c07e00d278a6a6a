"""What structured output costs a server: tokens per second with a JSON schema, over without.

    python -m loadtest.bench.structured                   # asks http://127.0.0.1:8000

Works with any OpenAI-compatible server that knows `response_format` and `structured_outputs`. The same question is answered as
text, as JSON with the whitespace that the model likes, and as JSON without. The schema goes on for longer than the answers may be,
and leaves no choice about as much as schemas in use do: names of properties. All are measured in turn, round after round, so that
a machine whose speed drifts favours none. What masks themselves take: `python -m tests.engine.grammar.measure`.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

_NAME = {"type": "string", "maxLength": 24}
PERSON = {
    "first_name": _NAME,
    "last_name": _NAME,
    "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 2020},
    "is_married": {"type": "boolean"},
    "occupation": {"type": "string", "maxLength": 60},
    "favourite_colour": {"enum": ["red", "green", "blue", "yellow"]},
}
SCHEMA = {
    "type": "array",
    "minItems": 100,
    "items": {"type": "object", "properties": PERSON, "required": [*PERSON], "additionalProperties": False},
}
QUESTION = "Describe a hundred people of a novel, one after the other, as JSON: names, year of birth, occupation, favourite colour."
CASES: Mapping[str, Mapping[str, Any]] = {
    "text": {},
    "JSON": {"response_format": {"type": "json_schema", "json_schema": {"name": "people", "schema": SCHEMA}}},
    "JSON without spaces": {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
}


class StructuredBench:
    """The cases, against one server.

    Args:
        client: of the server.
        model: its name there.
        tokens: of each answer.
        temperature: of the draws; 0: greedy.
    """

    def __init__(self, client: httpx.AsyncClient, model: str, tokens: int, temperature: float) -> None:
        self._client, self._model = client, model
        self._tokens, self._temperature = tokens, temperature
        self._asked = 0

    async def rate(self, case: str, streams: int) -> tuple[float, float]:
        """Tokens per second over all streams of one case, and the mean number of tokens that an event brings."""
        began = time.perf_counter()
        done = await asyncio.gather(*(self._stream(case) for _ in range(streams)))
        tokens, events = map(sum, zip(*done, strict=True))
        return tokens / (time.perf_counter() - began), tokens / events

    async def _stream(self, case: str) -> tuple[int, int]:
        """Tokens and events of one answer.

        Raises:
            httpx.HTTPStatusError: it is refused.
            RuntimeError: it fails midway.
        """
        self._asked += 1
        body = {
            "model": self._model,
            # A number of its own at the beginning: no answer's prompt is cached.
            "messages": [{"role": "user", "content": f"{self._asked}. {QUESTION}"}],
            "max_tokens": self._tokens,
            "temperature": self._temperature,
            "seed": self._asked,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **CASES[case],
        }
        tokens = events = 0
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line[5:])
                if "error" in event:
                    raise RuntimeError(event["error"]["message"])
                events += any(choice["delta"].get("content") for choice in event["choices"])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        return tokens, max(events, 1)


async def run(options: argparse.Namespace) -> None:
    """Print a line for each case and round, and the medians."""
    url = options.url.rstrip("/").removesuffix("/v1")
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for temperature in options.temperature:
            bench = StructuredBench(client, options.model, options.tokens, temperature)
            for case in CASES:  # the first grammar has the vocabulary read
                await bench.rate(case, 1)
            ratios: dict[str, list[float]] = {case: [] for case in CASES}
            for _ in range(options.rounds):
                text = 0.0
                for case in CASES:
                    rate, each = await bench.rate(case, options.streams)
                    text = text or rate
                    ratios[case].append(rate / text)
                    print(
                        f"temperature {temperature:g}, {case:20} {rate:8.1f} tok/s  {each:.2f} tokens an event",
                        flush=True,
                    )
            for case, found in ratios.items():
                print(
                    f"temperature {temperature:g}, {case:20} x {statistics.median(found):.2f} of text, {options.streams} streams"
                )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.bench.structured", description="What a JSON schema costs."
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server [%(default)s]")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="the model's name [%(default)s]")
    parser.add_argument("--streams", type=int, default=8, help="at once [%(default)s]")
    parser.add_argument("--tokens", type=int, default=192, help="of each answer [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="how often to repeat [%(default)s]")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 0.7], help="of the draws [%(default)s]")
    asyncio.run(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
