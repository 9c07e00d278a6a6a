"""Guesses from the sequence's own tokens and from answers of late, as many as are worth their rows."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.drafting.history import TokenHistory
from engine.drafting.recent import RecentAnswers
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams
from scheduler.worth import MOST_GUESSES, SHORTEST_MATCH, HitChances, OwnHits, RowPrice, worth_guessing

_SURE = 8  # tokens: after a match of its own that long nobody else's answer is looked at
# Looks that brought nothing, after which only every second token is looked at, then every fourth, ... Where a row is cheap, few
# sequences decode, and a look is nothing beside a step.
_FRUITLESS = 4
_RAREST = 16
_CHEAP = 0.3
_SELDOM = 32  # tokens between two looks for a request without hits, on a device that stands still meanwhile
_PROBE = 32  # looks in a row without a guess, after which one is made though it does not seem to be worth it


@dataclass(slots=True)
class _Guessed:
    """What is known of one request's guesses."""

    history: TokenHistory
    scope: Hashable  # whose answers are looked at
    prompt_length: int
    own: OwnHits = field(default_factory=OwnHits)
    length: int = 0  # of the last match
    price: float = 0.0  # of a guess, when the last ones were made
    fruitless: int = 0
    unguessed: int = 0

    def resting(self, known: int, price: float) -> bool:
        """Whether it is not worth a look now, as so many were in vain."""
        return price > _CHEAP and known % min(_RAREST, 1 << (self.fruitless // _FRUITLESS)) != 0


class Rival(Protocol):
    """Another who guesses, by other means."""

    def value(self, request_id: str) -> float:
        """Tokens that its guesses for a request would bring beyond their price."""
        ...


class PromptLookup:
    """Proposes what followed the newest tokens before: in the request's prompt, answer or prediction, or in an answer of late.

    Args:
        at_once: whether a worker takes one step at a time, and gets sequences that were held back with the very next one.
        rival: who guesses after it where it has no guess, and so where its own are worth less.
    """

    name = "prompt lookup"
    reads_predictions = True

    def __init__(self, *, at_once: bool, rival: Rival | None = None) -> None:
        self._at_once = at_once
        self._rival = rival
        self._price = RowPrice()
        self._chances = HitChances()
        self._recent = RecentAnswers()
        self._guessed: dict[str, _Guessed] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request lets anybody guess."""
        return sampling.speculation

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Where it costs nothing, unless looks were in vain; otherwise where most guesses were right, and now and then."""
        guessed = self._guessed.get(request_id)
        if guessed is None:
            return True
        if self._at_once:
            return not guessed.resting(known + 1, self._price.chance)
        return guessed.own.hits > 0.5 * guessed.own.trials > 0.0 or known % _SELDOM == 0

    def propose(self, candidates: Sequence[DraftCandidate]) -> list[list[int]]:
        """What followed before, as far as it is likely enough."""
        price = self._price.chance
        return [self._guess(candidate, price) for candidate in candidates]

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Learn from what became of guesses."""
        guessed = self._guessed.get(request_id)
        if guessed is None:
            return
        trials = guessed.own.learn(proposed, accepted)
        paid = accepted > proposed * guessed.price
        guessed.fruitless = max(0, guessed.fruitless - _FRUITLESS) if paid else guessed.fruitless + 1
        self._chances.learn(guessed.length, accepted, trials)

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded has ended."""
        self._price.observe(rows, tokens, seconds)

    def forget(self, request_id: str) -> None:
        """Drop its history; its answer is kept for others."""
        guessed = self._guessed.pop(request_id, None)
        if guessed is not None:
            self._recent.add(guessed.scope, guessed.history.since(guessed.prompt_length))

    def _guess(self, candidate: DraftCandidate, price: float) -> list[int]:
        guessed = self._guessed.get(candidate.request_id)
        if guessed is None:
            history = TokenHistory(candidate.sampling.prediction_ids)
            guessed = _Guessed(history, candidate.scope, candidate.prompt_length)
            self._guessed[candidate.request_id] = guessed
        if self._at_once and guessed.resting(len(candidate.token_ids), price):
            return []
        guessed.history.follow(candidate.token_ids)
        guessed.length, following = self._look(guessed, min(MOST_GUESSES, candidate.most))
        guessed.price = price
        if not following:
            guessed.fruitless += 1
            return []
        chance = self._chances.of(guessed.length, guessed.own)
        count = worth_guessing(chance, price)
        if count and self._rival is not None:
            value = sum(chance**place - price for place in range(1, min(count, len(following)) + 1))
            if self._rival.value(candidate.request_id) > value:
                return []
        if not count:
            guessed.fruitless += 1
            guessed.unguessed += 1
        if count or guessed.unguessed >= _PROBE:
            guessed.unguessed, count = 0, max(1, count)
        return following[:count]

    def _look(self, guessed: _Guessed, most: int) -> tuple[int, list[int]]:
        """The longer match: of its own text, or of an answer of late."""
        length, following = guessed.history.look(most)
        if length >= _SURE:
            return length, following
        other, there = self._recent.look(guessed.scope, guessed.history.newest, most)
        return (other, there) if other > max(length, SHORTEST_MATCH - 1) and there else (length, following)
