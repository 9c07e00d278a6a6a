"""Log-probabilities as the three JSON shapes that clients know: completions' lists, chat's entries, the prompt's objects."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from scheduler.types.step import TokenLogprobs
from server.text.tokenizer import Tokenizer

Spell = Callable[[int], str]  # what a token is called
LEAST = -9999.0  # JSON has no -Infinity; OpenAI sends this for an impossible token


def by_id(token: int) -> str:
    """A token's name where a client wants ids: vLLM's `return_tokens_as_token_ids`."""
    return f"token_id:{token}"


def completion_lists(
    entries: Sequence[TokenLogprobs | None], ids: Sequence[int], offsets: Sequence[int], most: int, spell: Spell
) -> dict[str, Any]:
    """`/v1/completions`: four lists of equal length. An entry of None is the first prompt token's.

    `top_logprobs` holds the `most` likeliest tokens and the token itself. Where two tokens have the same text, the likelier
    one stands for both: an object cannot hold a key twice.
    """
    tops: list[dict[str, float] | None] = []
    for entry in entries:
        if entry is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token, logprob in [*entry.top[:most], (entry.token_id, entry.logprob)]:
            top.setdefault(spell(token), finite(logprob))
        tops.append(top)
    return {
        "tokens": [spell(token) for token in ids],
        "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
        "top_logprobs": tops,
        "text_offset": list(offsets),
    }


def chat_entries(entries: Sequence[TokenLogprobs], most: int, tokenizer: Tokenizer, spell: Spell) -> dict[str, Any]:
    """`/v1/chat/completions`: one object for each token."""
    content = [
        _named(entry.token_id, entry.logprob, tokenizer, spell)
        | {"top_logprobs": [_named(token, logprob, tokenizer, spell) for token, logprob in entry.top[:most]]}
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def prompt_objects(entries: Sequence[TokenLogprobs], most: int, tokenizer: Tokenizer) -> list[dict[str, Any] | None]:
    """`prompt_logprobs`: null for the first prompt token, then an object by token id each, the token's own included."""
    objects: list[dict[str, Any] | None] = [None]
    for entry in entries:
        ranked = [(token, logprob, rank) for rank, (token, logprob) in enumerate(entry.top[:most], start=1)]
        objects.append(
            {
                str(token): {"logprob": finite(logprob), "rank": rank, "decoded_token": tokenizer.token_text(token)}
                for token, logprob, rank in [*ranked, (entry.token_id, entry.logprob, entry.rank)]
            }
        )
    return objects


def finite(logprob: float) -> float:
    """The value as JSON can express it: -Infinity, and a NaN that should not occur, become `LEAST`."""
    return max(logprob, LEAST) if math.isfinite(logprob) else LEAST


def _named(token: int, logprob: float, tokenizer: Tokenizer, spell: Spell) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token)
    return {"token": spell(token), "logprob": finite(logprob), "bytes": list(raw)}
