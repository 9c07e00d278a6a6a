"""Grammars that are made to take forever, and what they do to others.

    headrace serve
    python -m tests.server.structured.hostile             # asks http://127.0.0.1:8000

One client streams a long text. Another asks for one hostile grammar after the other; each has to be refused with a 4xx, or
answered, within `--seconds`. A line for each: what came, when, and the longest gap between two tokens of the stream meanwhile,
beside what the stream's gaps are alone. Ends with 1 if something else came, or if a grammar took longer.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

_WIDE = {f"p{i}": {"type": "string"} for i in range(8000)}


def nested(depth: int) -> dict[str, Any]:
    """Arrays in arrays."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 3}
    return schema


def doubling(rules: int) -> str:
    """Rules of which each is the one before it twice."""
    return "\n".join(["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(rules)), f'r{rules}: "a"?'])


_CYCLE = {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}
_NAMES = {f"^.*{i}.*$": {"type": "string"} for i in range(40)}
_TAGGED = [{"type": "object", "properties": {f"n{i}": {"const": i}}, "required": [f"n{i}"]} for i in range(2000)]
_UNDER_A_LONG_NAME = {"properties": {"x" * 100_000: {"properties": {str(i): {} for i in range(14000)}}}}
_TEXTS = [f"{i * 7919 % 10007:05d} and some more" for i in range(10000)]
_TERMINALS = "".join(f"\nT{i}: /.*{i}.*/" for i in range(3000))
HOSTILE: Mapping[str, Mapping[str, Any]] = {
    "itself": {"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}},
    "a cycle": {"json": {"$ref": "#/$defs/a", "$defs": _CYCLE}},
    "an intersection": {"json": {"allOf": [{"type": "string", "pattern": f".*{i}.*"} for i in range(30)]}},
    "a number's remainders": {"json": {"type": "integer", "multipleOf": 99999989}},
    "many properties": {"json": {"properties": _WIDE}},
    "patterns of names": {"json": {"patternProperties": _NAMES, "properties": {"a": {}}}},
    "a large enum": {"json": {"enum": [f"{i * 7919 % 10007:05d} and so on" for i in range(10000)]}},
    "a long text": {"json": {"type": "string", "minLength": 10**9, "maxLength": 10**9}},
    "a long array": {"json": {"type": "array", "items": {"properties": {"a": {}}}, "minItems": 10**8}},
    "arrays in arrays": {"json": json.dumps(nested(60))},
    "deeper": {"json": json.dumps(nested(70))},
    "alternatives": {"json": {"anyOf": _TAGGED}},
    "a long name over many": {"json": json.dumps(_UNDER_A_LONG_NAME)},
    "an exponential automaton": {"regex": "(.*a.{60}){3}b"},
    "a window of bits": {"regex": "[ab]*a[ab]{2000}"},
    "repeats of repeats": {"regex": "(((a{100}){100}){100}){100}"},
    "a bounded repeat": {"regex": "(a|b|ab){1,1000000}"},
    "parentheses": {"regex": "(" * 20000 + "a" + ")" * 20000},
    "alternatives in repeats": {"regex": "((a?){40}){40}(a{40}){40}"},
    "every letter": {"regex": r"(\p{L}{1,500}\p{N}{1,500}){1,500}"},
    "doubling": {"grammar": doubling(40)},
    "ambiguous": {"grammar": 'start: s\ns: s s s | s s | "a" | "aa" | "aaa"'},
    "left and right": {"grammar": 'start: a\na: a b | b a | "x"\nb: b a | a b | "y" | ""'},
    "terminals": {"grammar": "start: " + " | ".join(f"T{i}" for i in range(3000)) + _TERMINALS},
    "choices": {"choice": _TEXTS},
    "too large": {"regex": "a" * 300_000},
}


class LongStream:
    """A neighbour, whose tokens come at these times."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.times: list[float] = []

    async def run(self) -> None:
        """Stream texts until cancelled."""
        body = {"prompt": "Once upon a time", "max_tokens": 1500, "temperature": 0, "ignore_eos": True, "stream": True}
        while True:
            async with self._client.stream("POST", "/v1/completions", json=body) as answer:
                answer.raise_for_status()
                self.times.append(float("nan"))  # no gap leads here
                async for line in answer.aiter_lines():
                    if line.startswith("data: {"):
                        self.times.append(time.perf_counter())

    def gaps(self, begin: float = 0.0) -> list[float]:
        """Seconds between tokens, of those that came after `begin`."""
        pairs = zip(self.times, self.times[1:], strict=False)
        return [after - before for before, after in pairs if after > begin and after - before >= 0] or [0.0]


async def ask(client: httpx.AsyncClient, asked: Mapping[str, Any]) -> tuple[int, str]:
    """The status of the answer, and what it says."""
    body = {"prompt": "It is", "max_tokens": 24, "temperature": 1.0, "seed": 1, "structured_outputs": asked}
    answer = await client.post("/v1/completions", json=body)
    said = answer.json()
    return answer.status_code, said["error"]["message"] if "error" in said else said["choices"][0]["text"]


async def run(url: str, seconds: float) -> int:
    """Ask, and print."""
    failed = 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        await ask(client, {"regex": "a"})  # the process is started, the vocabulary read
        neighbour = LongStream(client)
        streaming = asyncio.create_task(neighbour.run())
        await asyncio.sleep(10)
        alone = sorted(neighbour.gaps())
        shown = f"{1e3 * statistics.median(alone):.1f} ms, p99 {1e3 * alone[int(0.99 * len(alone))]:.1f}"
        print(f"gaps alone: {shown}, longest {1e3 * alone[-1]:.1f}", flush=True)
        for name, asked in HOSTILE.items():
            began = time.perf_counter()
            status, said = await ask(client, asked)
            taken = time.perf_counter() - began
            bad = taken > seconds or not (status == 200 or 400 <= status < 500)
            failed += bad
            gaps = sorted(neighbour.gaps(began))
            shown = f"gaps {1e3 * statistics.median(gaps):6.1f} ms, longest {1e3 * gaps[-1]:6.1f}"
            print(
                f"{'FAILED ' if bad else ''}{name:24} {status} in {taken:5.2f} s  {shown}  {said[:110]!r}", flush=True
            )
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
    return int(failed > 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=12.0, help="that one may take [%(default)s]")
    options = parser.parse_args(argv)
    return asyncio.run(run(options.url, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
