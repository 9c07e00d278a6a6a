"""Which prompts greedy output is held against transformers' with, and how: one selection for all tests that do.

Given a prompt and our tokens, transformers' arg-max after every prefix must be our next token. By induction that is its greedy
output.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

PROMPTS = Path(__file__).parents[1] / "data" / "prompts.jsonl"
BLOCK = 32  # tokens of a KV block


@dataclass(frozen=True)
class SuiteSize:
    """How much of it.

    Attributes:
        count: prompts.
        output: tokens of each answer.
        longest: tokens that a prompt has fewer than.
    """

    count: int
    output: int
    longest: int

    @property
    def long(self) -> int:
        """How many of the prompts are the longest there are; they are the last."""
        return self.count // 5


QUICK = SuiteSize(count=6, output=16, longest=256)
FULL = SuiteSize(count=20, output=64, longest=1000)  # three times the prompts, four times the tokens, and the longest


def suite_prompts(tokenizer, size):
    """Of the real prompts some of the shortest, the shortest that fill a block, and the longest, as token ids."""
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    ids = sorted((ids for text in texts if len(ids := tokenizer.encode(text)) < size.longest), key=len)
    filling = [prompt for prompt in ids if len(prompt) > BLOCK]
    half = size.count // 2
    return ids[:half] + filling[: half - size.long] + filling[-size.long :]


def tight_pool(prompts, size):
    """Blocks in which any of these prompts has room with its answer, but not all of them together: some are preempted."""
    longest = max(len(prompt) for prompt in prompts) + size.output
    return -(-longest // BLOCK) + size.count // 3


def is_greedy(model, prompt, output):
    """Whether this transformers model would have answered the prompt with these tokens."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    return logits.argmax(-1).tolist() == output
