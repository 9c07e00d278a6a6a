"""Prompts of exactly the wanted number of tokens, made of real words, that share what the trace says is shared.

A text is the opener, some words of its own, and then phrases of `PHRASE` tokens, drawn at random from a seed and a key.
Its own words see to it that texts which share nothing do not begin alike: of a thousand prompts most would have their first phrase
from another.
All prompts of a session have one key, and each takes its length of the same text, so that they extend one another; a block id is
the key of that block's text; any other request has a key of its own. Drawing phrases rather than words builds 100,000 tokens in
about a millisecond.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from random import Random

from loadtest.workload.plan import Planned
from loadtest.workload.vocabulary import Vocabulary
from loadtest.workload.words import OPENER

PHRASE = 32
_PHRASES = 1024
_HEAD = 8  # tokens of its own that a text begins with, or the next larger number that words can make up
_CACHED_BLOCKS = 4096


@dataclass(frozen=True, slots=True)
class PromptText:
    """A text, and its length in tokens: the length asked for whenever words can make it up."""

    text: str
    tokens: int


class Prompts:
    """Builds prompts from a vocabulary and a seed. Raises ValueError if no words add up to `PHRASE` tokens."""

    def __init__(self, vocabulary: Vocabulary, seed: int) -> None:
        self._vocabulary = vocabulary
        self._seed = seed
        self._by_length: dict[int, list[str]] = {}
        for word, count in vocabulary.words:
            self._by_length.setdefault(count, []).append(word)
        self._spellable = self._lengths(2 * PHRASE)
        self._first_lengths = lru_cache(None)(self._choices)
        if PHRASE not in self._spellable:
            raise ValueError(f"no combination of words has {PHRASE} tokens")
        self._head = min(length for length in self._spellable if length >= _HEAD)
        rng = Random(f"{seed} phrases")
        self._phrases = [self._words(rng, PHRASE) for _ in range(_PHRASES)]
        self._texts = ["".join(words) for words in self._phrases]
        self._length_of = dict(vocabulary.words)
        self._block = lru_cache(_CACHED_BLOCKS)(self._run)

    def prompt(self, planned: Planned) -> PromptText:
        """The text of one request; its `tokens` is 0 if the text is the trace's own, which nobody has counted."""
        if planned.prompt is not None:
            return PromptText(planned.prompt, planned.prompt_tokens)
        wanted = max(0, planned.prompt_tokens - self._vocabulary.base)
        if planned.blocks:
            text, spelled = self._blocks(planned, wanted)
        elif planned.session is not None:
            text, spelled = self._run(f"session {planned.session}", wanted)
        else:
            text, spelled = self._run(f"request {planned.index}", wanted)
        exact = self._vocabulary.exact
        return PromptText(OPENER + text, self._vocabulary.base + spelled if exact else planned.prompt_tokens)

    def _blocks(self, planned: Planned, wanted: int) -> tuple[str, int]:
        """The blocks' texts joined, all but the last whole; the opener counts as part of the first block."""
        parts: list[str] = []
        spelled = 0
        for place, block in enumerate(planned.blocks):
            whole = planned.block_tokens if place else max(0, planned.block_tokens - self._vocabulary.base)
            text, count = self._block(f"block {block}", min(whole, wanted - spelled))
            parts.append(text)
            spelled += count
        return "".join(parts), spelled

    def _run(self, key: str, tokens: int) -> tuple[str, int]:
        """The first `tokens` of the key's text, and their number: fewer only if no words add up to the remainder."""
        if not self._vocabulary.exact:
            tokens = round(tokens * self._vocabulary.words_per_token)
        rng = Random(f"{self._seed} {key}")
        rest = tokens - self._head
        head = self._head if rest >= PHRASE or rest in self._spellable else 0  # a rest of one token may be impossible
        begin = "".join(self._words(rng, head))
        text, count = self._phrased(rng, tokens - head)
        return begin + text, head + count

    def _phrased(self, rng: Random, tokens: int) -> tuple[str, int]:
        """Random phrases of so many tokens, and their number."""
        whole, rest = divmod(tokens, PHRASE)
        if rest and 1 not in self._by_length and whole:
            whole, rest = whole - 1, rest + PHRASE  # a remainder of one token may be impossible; this one never is
        drawn = [int(rng.random() * _PHRASES) for _ in range(whole + 2)]
        text = "".join([self._texts[number] for number in drawn[:whole]])
        if not rest:
            return text, whole * PHRASE
        tail, count = self._tail(rng, self._phrases[drawn[whole]] + self._phrases[drawn[whole + 1]], rest)
        return text + tail, whole * PHRASE + count

    def _tail(self, rng: Random, words: list[str], tokens: int) -> tuple[str, int]:
        """As many of `words` as leave a remainder that words can make up, and that remainder."""
        lengths = [0, *accumulate(self._length_of[word] for word in words)]
        for many in range(len(words), -1, -1):
            rest = tokens - lengths[many]
            if rest >= 0 and rest in self._spellable:
                return "".join(words[:many] + self._words(rng, rest)), tokens
        return "", 0

    def _words(self, rng: Random, tokens: int) -> list[str]:
        """Random words of `tokens` in all, which must be a possible length."""
        found: list[str] = []
        while tokens:
            lengths, weights = self._first_lengths(tokens)
            (length,) = rng.choices(lengths, cum_weights=weights)
            found.append(rng.choice(self._by_length[length]))
            tokens -= length
        return found

    def _choices(self, tokens: int) -> tuple[list[int], list[int]]:
        """The lengths that a first word of `tokens` may have, and how many words have them, added up."""
        lengths = [length for length in self._by_length if tokens - length in self._spellable]
        return lengths, list(accumulate(len(self._by_length[length]) for length in lengths))

    def _lengths(self, most: int) -> frozenset[int]:
        """The lengths up to `most` tokens that some combination of words has."""
        found = {0}
        for total in range(1, most + 1):
            if any(total - length in found for length in self._by_length):
                found.add(total)
        return frozenset(found)
