"""Whether a model's answers fit their schemas: every schema of `tests/data/json_schemas.json`, three answers each.

    headrace serve Qwen2.5-Coder-1.5B-Instruct.gguf
    python -m tests.server.structured.ask_schemas         # asks http://127.0.0.1:8000

Each is drawn with a seed of its own. An answer that ended (`stop`) has to be valid by `jsonschema`; one that `max_tokens` cut off
cannot be, and is counted apart. A schema is either answered, or refused with a 400 that says why. Ends with 1 if an answer is
invalid or anything else came.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from jsonschema import ValidationError
from jsonschema.validators import validator_for

SCHEMAS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "data" / "json_schemas.json").read_text())


class SchemaQuestions:
    """Asks for answers, so many at a time, and notes what became of each."""

    def __init__(self, client: httpx.AsyncClient, temperature: float, max_tokens: int, at_once: int) -> None:
        self._client = client
        self._temperature, self._max_tokens = temperature, max_tokens
        self._room = asyncio.Semaphore(at_once)
        self.tokens = 0

    async def ask(self, schema: Any, seed: int) -> tuple[str, str]:
        """What became of one answer (`valid`, `cut`, `refused`, `INVALID`, `FAILED`), and why or which."""
        body = {
            "messages": [
                {"role": "user", "content": f"Give an example that fits this JSON schema:\n{json.dumps(schema)}"}
            ],
            "response_format": {"type": "json_schema", "json_schema": {"name": "example", "schema": schema}},
            "temperature": self._temperature,
            "seed": seed,
            "max_tokens": self._max_tokens,
        }
        async with self._room:
            answer = await self._client.post("/v1/chat/completions", json=body)
        said = answer.json()
        if answer.status_code == 400:
            return "refused", said["error"]["message"]
        if answer.status_code != 200:
            return "FAILED", f"{answer.status_code}: {answer.text}"
        self.tokens += said["usage"]["completion_tokens"]
        (choice,) = said["choices"]
        text = choice["message"]["content"]
        if choice["finish_reason"] == "length":
            return "cut", text
        if choice["finish_reason"] != "stop":
            return "FAILED", choice["finish_reason"]
        try:
            validator_for(schema)(schema).validate(json.loads(text))
        except (ValueError, ValidationError) as error:
            return "INVALID", f"{text}: {error}"
        return "valid", text


async def run(options: argparse.Namespace) -> int:
    """Ask, print a line for each schema, and the sums."""
    counted: Counter[str] = Counter()
    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=options.url, timeout=900) as client:
        questions = SchemaQuestions(client, options.temperature, options.max_tokens, options.at_once)

        async def all_of(name: str) -> None:
            found = await asyncio.gather(
                *(questions.ask(SCHEMAS[name], seed) for seed in range(1, options.answers + 1))
            )
            counted.update(kind for kind, _ in found)
            counted["schemas refused" if found[0][0] == "refused" else "schemas answered"] += 1
            shown = found[0][1] if found[0][0] == "refused" else min((said for _, said in found), key=len)
            print(f"{name:24}{', '.join(kind for kind, _ in found):24}{shown[:150]!r}", flush=True)
            for kind, said in found:
                if kind.isupper():
                    print(f"    {kind}: {said}", flush=True)

        await asyncio.gather(*map(all_of, SCHEMAS))
    seconds = time.perf_counter() - began
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(counted.items())))
    print(f"{questions.tokens} tokens in {seconds:.0f} s, {questions.tokens / seconds:.1f} tok/s")
    return int(bool(counted["INVALID"] or counted["FAILED"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--answers", type=int, default=3, help="for each schema [%(default)s]")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--at-once", type=int, default=16, help="requests that are open [%(default)s]")
    return asyncio.run(run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
