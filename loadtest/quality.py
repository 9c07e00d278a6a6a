"""What a lossy server loses: perplexity and greedy agreement on a text, against a reference server of the same model.

    headrace serve --port 8001 --cpu-precision exact &
    headrace serve --port 8002 --cpu-precision fast &
    python -m loadtest.quality --reference http://127.0.0.1:8001 --candidate http://127.0.0.1:8002 book.txt

Works with servers that have `/tokenize` and `prompt_logprobs`. The text is cut into windows; both servers score each token except
a window's first, given the window's earlier ones. Agreement is the share of positions at which both find the same token likeliest.
"""

import argparse
import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True, slots=True)
class Scored:
    """For each scored position, the token's log-probability (natural) and the likeliest token's id."""

    logprobs: list[float]
    best: list[int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Perplexities, and the share of positions with the same likeliest token."""

    positions: int
    reference: float
    candidate: float
    agreement: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[Scored, Scored]]) -> "Comparison":
        """Summarise pairs (reference, candidate) of the same windows."""
        count = sum(len(reference.best) for reference, _ in pairs)
        same = sum(
            a == b for reference, candidate in pairs for a, b in zip(reference.best, candidate.best, strict=True)
        )

        def perplexity(side: int) -> float:
            return math.exp(-sum(sum(pair[side].logprobs) for pair in pairs) / count)

        return cls(count, perplexity(0), perplexity(1), same / count)


def windows(ids: Sequence[int], size: int) -> Iterator[list[int]]:
    """Consecutive windows of `size` tokens; the last may be shorter, but has at least two."""
    for start in range(0, len(ids), size):
        if len(ids) - start > 1:
            yield list(ids[start : start + size])


async def score(client: httpx.AsyncClient, model: str, ids: list[int]) -> Scored:
    """Score one window on one server. Raises httpx.HTTPStatusError if it is refused."""
    body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
    answer = await client.post("/v1/completions", json=body)
    answer.raise_for_status()
    entries: list[dict[str, Any]] = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return Scored(
        [entry[str(token)]["logprob"] for entry, token in zip(entries, ids[1:], strict=True)],
        [int(next(token for token, told in entry.items() if told["rank"] == 1)) for entry in entries],
    )


async def compare(reference: str, candidate: str, text: str, *, window: int) -> Comparison:
    """Score `text` on both servers, in windows of `window` tokens, one at a time."""
    async with (
        httpx.AsyncClient(base_url=reference, timeout=600) as left,
        httpx.AsyncClient(base_url=candidate, timeout=600) as right,
    ):
        model = (await left.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        tokenized = await left.post("/tokenize", json={"model": model, "prompt": text})
        pairs = []
        for ids in windows(tokenized.raise_for_status().json()["tokens"], window):
            pairs.append((await score(left, model, ids), await score(right, model, ids)))
    return Comparison.of(pairs)


def main() -> None:
    """Print one line per file."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, help="UTF-8 texts")
    parser.add_argument("--reference", required=True, help="URL of the exact server")
    parser.add_argument("--candidate", required=True, help="URL of the other one")
    parser.add_argument("--window", type=int, default=1024, help="tokens scored together")
    arguments = parser.parse_args()
    for path in arguments.files:
        text = path.read_text(encoding="utf-8")
        found = asyncio.run(compare(arguments.reference, arguments.candidate, text, window=arguments.window))
        print(
            f"{path.name}: {found.positions} tokens, perplexity {found.reference:.4f} and {found.candidate:.4f} "
            f"({100 * (found.candidate / found.reference - 1):+.2f} %), same likeliest token {found.agreement:.4f}"
        )


if __name__ == "__main__":
    main()
