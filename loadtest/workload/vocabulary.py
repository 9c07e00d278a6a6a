"""How many tokens the target makes of each word, so that prompts are built to length rather than searched for.

If words are cut at spaces, as all vocabularies in use do, the tokens of a text are those of its words. One question for every
few dozen words, each said twice in a row, gives their lengths: a word's tokens are what is repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import httpx

from loadtest.workload.words import OPENER, WORDS

_BATCH = 48  # words per question: even with a byte-level vocabulary it fits the context of small models
_ENOUGH = 200  # with this many words of one token, longer ones are not needed


class PromptTokenizerError(RuntimeError):
    """The target's tokenizer cannot be asked, or does not count as prompts of exact length require."""


class PromptTokenizer(Protocol):
    """Turns text into ids, with the special tokens that a prompt of `/v1/completions` gets."""

    async def ids(self, text: str) -> list[int]:
        """The ids of `text`. Raises PromptTokenizerError."""
        ...


class ServerTokenizer:
    """Asks the target: with `{"prompt"}`, as headrace, vLLM and SGLang take it, or `{"content"}`, as llama.cpp does."""

    def __init__(self, client: httpx.AsyncClient, url: str, model: str) -> None:
        self._client = client
        self._url = url
        self._model = model
        self._asks = [self._prompt, self._content]

    async def ids(self, text: str) -> list[int]:
        """Ask the target, from then on in the form that it understood. Raises PromptTokenizerError if it understands neither."""
        problems: list[str] = []
        for ask in list(self._asks):
            try:
                answer = await self._client.post(self._url, json=ask(text))
                found = answer.json().get("tokens") if answer.status_code == 200 else None
            except (httpx.HTTPError, ValueError, AttributeError) as error:
                problems.append(str(error) or type(error).__name__)
                continue
            if found and isinstance(found, list) and all(isinstance(token, int) for token in found):
                self._asks = [ask]
                return list(found)
            problems.append(f"status {answer.status_code}: {answer.text[:100]}")
        raise PromptTokenizerError(
            f"{self._url} gives no token ids ({'; then '.join(problems)}); give a tokenizer.json or characters per token"
        )

    def _prompt(self, text: str) -> dict[str, Any]:
        return {"model": self._model, "prompt": text}

    def _content(self, text: str) -> dict[str, Any]:
        return {"content": text, "add_special": True}


class FileTokenizer:
    """Reads a `tokenizer.json`. Raises PromptTokenizerError if that fails."""

    def __init__(self, path: str | Path) -> None:
        from tokenizers import Tokenizer as Fast

        try:
            self._fast = Fast.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every problem
            raise PromptTokenizerError(f"{path} cannot be read as a tokenizer.json: {error}") from None

    async def ids(self, text: str) -> list[int]:
        """Encode in this process; never raises."""
        return list(self._fast.encode(text).ids)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words and their lengths in tokens.

    Attributes:
        words: each word with a space before it, and its number of tokens.
        base: tokens of a prompt that is only `OPENER`, including special tokens and the chat template.
        exact: whether lengths are the tokenizer's rather than estimates.
        words_per_token: 1 if exact.
    """

    words: tuple[tuple[str, int], ...]
    base: int
    exact: bool = True
    words_per_token: float = 1.0

    @classmethod
    async def measured(cls, tokenizer: PromptTokenizer) -> "Vocabulary":
        """Measure a tokenizer. Raises PromptTokenizerError unless a text has as many tokens as its words together."""
        opener = await tokenizer.ids(OPENER)
        words: list[tuple[str, int]] = []
        for start in range(0, len(WORDS), _BATCH):
            batch = WORDS[start : start + _BATCH]
            ids = await tokenizer.ids(OPENER + "".join(f" {word} {word}" for word in batch))
            words += [(f" {word}", count) for word, count in zip(batch, _doubled(opener, ids, len(batch)), strict=True)]
        single = [entry for entry in words if entry[1] == 1]
        found = cls(tuple(single if len(single) >= _ENOUGH else words), len(opener))
        sample = Random(0).sample(found.words, _BATCH)
        text = OPENER + "".join(word for word, _ in sample)
        told, summed = len(await tokenizer.ids(text)), found.base + sum(count for _, count in sample)
        if told != summed:
            raise PromptTokenizerError(f"{_BATCH} words are {told} tokens together and {summed} one by one")
        return found

    @classmethod
    def estimated(cls, characters_per_token: float) -> "Vocabulary":
        """Lengths estimated without a tokenizer. Raises ValueError unless the argument is positive and finite."""
        if not 0 < characters_per_token < float("inf"):
            raise ValueError("characters per token must be positive and finite")
        mean = sum(len(word) + 1 for word in WORDS) / len(WORDS)
        return cls(
            tuple((f" {word}", 1) for word in WORDS), 1, exact=False, words_per_token=characters_per_token / mean
        )


def _doubled(opener: Sequence[int], ids: Sequence[int], many: int) -> list[int]:
    """The lengths of `many` words that each come twice in `ids`, between the ids that the opener alone begins and ends with."""
    begin = 0
    while begin < min(len(opener), len(ids)) and opener[begin] == ids[begin]:
        begin += 1
    end = len(ids) - (len(opener) - begin)  # special tokens at the end
    lengths: list[int] = []
    at = begin
    while at < end:
        length = next((size for size in range(1, (end - at) // 2 + 1) if _twice(ids, at, size)), None)
        if length is None:
            raise PromptTokenizerError(
                "a word said twice in a row is not its tokens twice: lengths cannot be built from words"
            )
        lengths.append(length)
        at += 2 * length
    if len(lengths) != many:
        raise PromptTokenizerError(f"{many} words said twice have {len(lengths)} doubled parts")
    return lengths


def _twice(ids: Sequence[int], at: int, size: int) -> bool:
    return list(ids[at : at + size]) == list(ids[at + size : at + 2 * size])
