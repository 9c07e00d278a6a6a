"""`bad_words`: token sequences that must not be completed, wherever they began.

As in transformers' `NoBadWordsLogitsProcessor`, a bad word that began in the prompt counts too.
"""

from dataclasses import dataclass

from engine.sampling.edits import AddingEdit, Additions, known_ids, masked
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class _Words:
    """One request's words: those of one token, and the longer ones by their second-to-last token."""

    single: tuple[int, ...]
    longer: dict[int, list[tuple[int, ...]]]

    @classmethod
    def of(cls, bad_words: tuple[tuple[int, ...], ...]) -> "_Words":
        longer: dict[int, list[tuple[int, ...]]] = {}
        for word in bad_words:
            if len(word) > 1:
                longer.setdefault(word[-2], []).append(word)
        return cls(tuple(word[0] for word in bad_words if len(word) == 1), longer)

    def forbidden(self, tokens: list[int]) -> list[int]:
        """Tokens that would complete a word after `tokens`."""
        begun = self.longer.get(tokens[-1], ()) if tokens else ()
        complete = [word[-1] for word in begun if tuple(tokens[-(len(word) - 1) :]) == word[:-1]]
        return [*self.single, *complete]


class BadWords(AddingEdit):
    """Masks every token that would complete a bad word."""

    needs_host_tokens = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._words: dict[str, _Words] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request sent bad words."""
        return bool(sampling.bad_words)

    def additions(self, sequence: Sequence, length: int) -> Additions:
        """-inf for the tokens that would complete a word."""
        words = self._words.get(sequence.request_id)
        if words is None:
            words = self._words[sequence.request_id] = _Words.of(sequence.sampling.bad_words)
        return masked(known_ids(words.forbidden(sequence.tokens), self._vocab_size))

    def forget(self, request_id: str) -> None:
        """Drop the request's words."""
        self._words.pop(request_id, None)
