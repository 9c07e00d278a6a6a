"""Whether a draft model pays, and how many tokens it guesses: what a draft's step takes is a price beside the rows of a step.

A draft's step for n sequences brings them a guess each. It is worth its time if

    sum over sequences (chance that the guess is right - price of its row) > seconds of the draft's step * tokens a second

with all of that measured (`scheduler/worth.py`). How likely a guess is right is told by how sure the draft is of it, as often as
guesses that it was as sure of were right. Where a sequence's KV has to be computed first, what is won until its end must be more.

All of this may be wrong for a while, so there is an account besides: guesses are charged with the time that they take and credited
with what they spare. What is lost in a row is at most what is on it, and that grows by one part in a hundred of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.worth import MARGIN, MOST_GUESSES, OwnHits, RowPrice

_PART = 0.01  # of all time
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 2.0
_STEPS = 3  # that must have been seen before anything is guessed
_MARGIN = 1.1
_LEVELS = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)  # of how sure a draft is, between which guesses count as alike
_FIRST_CHANCES = (0.2, 0.4, 0.55, 0.7, 0.85, 0.92, 0.97)
_PRIOR = 10.0
_ALL = 0.99  # memory, from one verification to the next
_OWN = 0.9
_TRUST = 3.0
_SUREST = 0.98
_USUAL = 0.75  # chance of a guess until there were any
_GAIN, _GAIN_PRIOR = (
    0.1,
    50.0,
)  # tokens that guesses bring beyond their price, for each token of the model's; until it is known
_ANSWER, _ANSWERS = 128.0, 4.0  # tokens of an answer, until so many have ended
_RARELY = 16  # tokens between two tries where guesses do not pay


@dataclass(slots=True)
class OwnGuesses:
    """What is known of one request's guesses.

    Attributes:
        hits: how many were right, beside how many were expected to be.
        expected: of those.
        sure: how likely the draft's guesses were taken to be right, verified or not; and how many there were.
    """

    hits: float = 0.0
    expected: float = 0.0
    sure: OwnHits = field(default_factory=OwnHits)

    @property
    def luck(self) -> float:
        """By how much its guesses are better than those of others of which the draft is as sure."""
        return (self.hits + _TRUST) / (self.expected + _TRUST)


class DraftWorth:
    """Measures, and decides."""

    def __init__(self) -> None:
        self._step, self._draft = RowPrice(), RowPrice()
        self._steps = 0
        self._hits = [_PRIOR * chance for chance in _FIRST_CHANCES]
        self._trials = [_PRIOR] * len(_FIRST_CHANCES)
        self._sure = OwnHits(_PRIOR * _USUAL, _PRIOR)
        self._gained, self._spent_on = _GAIN * _GAIN_PRIOR, _GAIN_PRIOR
        self._answers, self._answer_tokens = _ANSWERS, _ANSWERS * _ANSWER
        self._seconds = _FIRST_SECONDS
        self._hopeless = 0

    # --- what happens ---

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded."""
        self._steps += 1
        self._step.observe(rows, tokens, seconds)
        self._seconds = min(_MOST_SECONDS, self._seconds + _PART * seconds)

    def drafted(self, rows: int, seconds: float, *, new: bool) -> None:
        """A step of the draft's took so long; `new`: for guesses, not for KV that was missing."""
        self._draft.observe(rows, rows, seconds)
        self._step.spend(seconds)
        self._seconds -= seconds
        if new:
            self._gained -= seconds * self._step.rate

    def estimated(self, own: OwnGuesses, sure: float) -> float:
        """The chance of a guess of which the draft is so sure."""
        level = _level(sure)
        chance = min(_SUREST, self._hits[level] / self._trials[level] * own.luck)
        for each, memory in ((own.sure, _OWN), (self._sure, _ALL)):
            each.hits, each.trials = memory * each.hits + chance, memory * each.trials + 1
        return chance

    def verified(self, own: OwnGuesses, sure: Sequence[float], accepted: int) -> None:
        """Of guesses in a row, of which the draft was so sure, so many were right."""
        for place, each in enumerate(sure[: accepted + 1]):
            level, right = _level(each), place < accepted
            usual = self._hits[level] / self._trials[level]
            self._hits[level] = _ALL * self._hits[level] + right
            self._trials[level] = _ALL * self._trials[level] + 1
            own.hits, own.expected = _OWN * own.hits + right, _OWN * own.expected + usual
        rate = self._step.rate
        won = accepted - len(sure) * self._step.row_seconds * rate
        self._gained, self._spent_on = _ALL * self._gained + won, _ALL * self._spent_on + 1
        if rate:
            self._seconds = min(_MOST_SECONDS, self._seconds + won / rate)

    def ended(self, tokens: int) -> None:
        """An answer had so many tokens."""
        self._answers, self._answer_tokens = _ALL * self._answers + 1, _ALL * self._answer_tokens + tokens

    # --- what is decided ---

    @property
    def row_price(self) -> float:
        """With what chance a guess must be right to be worth its row."""
        return self._step.chance / MARGIN * _MARGIN

    def next_chance(self, own: OwnGuesses) -> float:
        """That of a guess that the draft has not made yet."""
        usual = self._sure.hits / self._sure.trials
        return min(_SUREST, (own.sure.hits + _TRUST * usual) / (own.sure.trials + _TRUST))

    def rests(self, known: int) -> bool:
        """Whether there is no point in asking now, as it did not pay of late, or nothing is known yet."""
        return self._steps < _STEPS or self._seconds <= 0 or (self._hopeless > 2 and known % _RARELY != 0)

    def pays(self, chances: Sequence[float], rows: int) -> bool:
        """Whether a step of the draft's of so many rows is worth its time for guesses that are so likely."""
        price = self.row_price
        won = sum(max(0.0, chance - price) for chance in chances)
        return won > _MARGIN * self._draft.seconds_of(rows) * self._step.rate

    def promising(self, chances: Sequence[float]) -> bool:
        """Whether the first guesses for these sequences pay, if none lacks KV. Notes where they do not."""
        pays = self.pays(chances, len(chances))
        self._hopeless = 0 if pays else self._hopeless + 1
        return pays

    def worth_catching_up(self, missing: int, made: int) -> bool:
        """Whether KV of so many tokens is worth computing for a sequence that has made so many."""
        seconds = missing * self._draft.row_seconds
        left = max(self._answer_tokens / self._answers - made, made / 2)
        gain = self._gained / self._spent_on * left
        return gain > _MARGIN * seconds * self._step.rate or self._seconds > 2 * seconds

    def value(self, own: OwnGuesses) -> float:
        """Tokens that guesses for one sequence bring beyond their price."""
        chance, price = self.next_chance(own), self.row_price + self._draft.seconds_of(1) * self._step.rate
        return sum(max(0.0, chance**count - price) for count in range(1, MOST_GUESSES + 1))


def _level(sure: float) -> int:
    return sum(sure >= level for level in _LEVELS)
