"""Whether a draft model pays, and how many tokens it guesses: what a draft's step takes is a price beside the rows of a step.

A draft's step for n sequences brings them a guess each. It is worth its time if

    sum over sequences (chance that the guess is right) > tokens a second * (seconds of the draft's step + what n rows add)

with all of that measured (`scheduler/worth.py`). Kernels compute a few rows nearly as fast as one and the next all the slower, so
what rows add is taken from steps of just so many, where there were some. How likely a guess is right is told by how sure the draft
is of it, as often as guesses that it was as sure of were right. Where a sequence's KV has to be computed first, what is won until
its end must be more.

All of this may be wrong for a while, so there is an account besides: guesses are charged with the time that they take and credited
with what they spare. What is lost in a row is at most what is on it, and that grows by one part in a hundred of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.worth import MOST_GUESSES, OwnHits, RowPrice

_PART = 0.01  # of all time
_FIRST_SECONDS, _MOST_SECONDS = 1.0, 2.0
_STEPS = 3  # that must have been seen before anything is guessed
_MARGIN = 1.1
_LEAST = 0.02
_MEMORY = 0.98
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
_TABLE, _ENOUGH = 32, 3  # rows of a step that are told apart, and how many steps of a number must have been seen
_PACE, _SIZE = 0.3, 0.05  # weight of a step
_RARELY = 16  # tokens between two tries where guesses do not pay


class StepTimes:
    """What steps of each small number of rows took of late.

    A machine that others use is faster now and slower then. So a pace is measured by all steps, and how steps of so many rows
    compare by it: else sizes that are seldom computed would seem dear, or cheap, for ever.
    """

    def __init__(self) -> None:
        self._pace = 0.0  # seconds
        self._sizes = [0.0] * (_TABLE + 1)  # what a step of so many rows takes, in paces
        self._seen = [0] * (_TABLE + 1)

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        if rows > _TABLE or seconds <= 0:
            return
        if not self._pace:
            self._pace = seconds
        if self._seen[rows]:
            seconds = min(seconds, 2 * self._sizes[rows] * self._pace)  # else it was held up by something else
            self._pace += _PACE * (seconds / self._sizes[rows] - self._pace)
        self._seen[rows] += 1
        self._sizes[rows] += max(_SIZE, 1 / self._seen[rows]) * (seconds / self._pace - self._sizes[rows])

    def seconds(self, rows: int) -> float | None:
        """What a step of so many rows takes; None if too few were seen."""
        known = rows <= _TABLE and self._seen[rows] >= _ENOUGH
        return self._sizes[rows] * self._pace if known else None

    def added(self, rows: int, more: int) -> float | None:
        """What so many more rows add; None if steps of fewer than two sizes were seen."""
        seen = [each for each in range(1, _TABLE + 1) if self._seen[each] >= _ENOUGH]
        if len(seen) < 2:
            return None
        return max(0.0, self._of(rows + more, seen) - self._of(rows, seen)) * self._pace

    def _of(self, rows: int, seen: Sequence[int]) -> float:
        """A place on the line through the next sizes below and above that were seen; beyond all, through the first and the last."""
        below = max((each for each in seen if each <= rows), default=seen[0])
        above = min((each for each in seen if each >= rows), default=seen[0])
        if below == above:
            if below == rows:
                return self._sizes[below]
            above = seen[-1]
        low, high = self._sizes[below], self._sizes[above]
        return low + (high - low) * (rows - below) / (above - below)


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
        self._times = StepTimes()
        self._streams = 0  # sequences of the step that is planned
        self._made, self._plain, self._drafting = 0.0, 0.0, 0.0
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
        self._times.observe(rows, seconds)
        usual = self._times.seconds(self._streams)
        if usual is not None:
            self._made = _MEMORY * self._made + tokens
            self._plain = _MEMORY * self._plain + (seconds + self._drafting) * self._streams / usual
        self._drafting = 0.0
        self._seconds = min(_MOST_SECONDS, self._seconds + _PART * seconds)

    def drafted(self, rows: int, seconds: float, *, new: bool) -> None:
        """A step of the draft's took so long; `new`: for guesses, not for KV that was missing."""
        self._draft.observe(rows, rows, seconds)
        self._step.spend(seconds)
        self._drafting += seconds
        self._seconds -= seconds
        if new:
            self._gained -= seconds * self.rate

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
        rate = self.rate
        won = accepted - len(sure) * self._step.row_seconds * rate
        self._gained, self._spent_on = _ALL * self._gained + won, _ALL * self._spent_on + 1
        if rate:
            self._seconds = min(_MOST_SECONDS, self._seconds + won / rate)

    def ended(self, tokens: int) -> None:
        """An answer had so many tokens."""
        self._answers, self._answer_tokens = _ALL * self._answers + 1, _ALL * self._answer_tokens + tokens

    # --- what is decided ---

    @property
    def rate(self) -> float:
        """Tokens a second of as many sequences as the planned step has: without guesses, times what those brought of late."""
        usual = self._times.seconds(self._streams)
        if usual is None:
            return self._step.rate
        return self._streams / usual * (max(1.0, self._made / self._plain) if self._plain else 1.0)

    def row_price(self, rows: int, more: int = 1) -> float:
        """With what chance each of so many guesses must be right to be worth its row, in a step of so many rows besides."""
        added = self._times.added(rows, more)
        seconds = self._step.row_seconds if added is None else added / more
        return max(_LEAST, _MARGIN * seconds * self.rate)

    def next_chance(self, own: OwnGuesses) -> float:
        """That of a guess that the draft has not made yet."""
        usual = self._sure.hits / self._sure.trials
        return min(_SUREST, (own.sure.hits + _TRUST * usual) / (own.sure.trials + _TRUST))

    def rests(self, known: int) -> bool:
        """Whether there is no point in asking now, as it did not pay of late, or nothing is known yet."""
        return self._steps < _STEPS or self._seconds <= 0 or (self._hopeless > 2 and known % _RARELY != 0)

    def pays(self, chances: Sequence[float], rows: int, drafted: int) -> bool:
        """Whether guesses that are so likely are worth their rows, besides so many, and a step of the draft's of `drafted` rows."""
        price = self.row_price(rows, len(chances)) * len(chances)
        return sum(chances) > price + _MARGIN * self._draft.seconds_of(drafted) * self.rate

    def promising(self, chances: Sequence[float], streams: int) -> bool:
        """Whether the first guesses for these sequences, of so many that the planned step has, pay, if none lacks KV.

        It takes some steps of as many to know. Notes where they do not pay.
        """
        self._streams = streams
        if streams <= _TABLE and self._times.seconds(streams) is None:
            return False
        pays = self.pays(chances, streams, len(chances))
        self._hopeless = 0 if pays else self._hopeless + 1
        return pays

    def worth_catching_up(self, missing: int, made: int) -> bool:
        """Whether KV of so many tokens is worth computing for a sequence that has made so many."""
        seconds = missing * self._draft.row_seconds
        left = max(self._answer_tokens / self._answers - made, made / 2)
        gain = self._gained / self._spent_on * left
        return gain > _MARGIN * seconds * self.rate or self._seconds > 2 * seconds

    def value(self, own: OwnGuesses) -> float:
        """Tokens that guesses for one sequence bring beyond their price."""
        chance, price = self.next_chance(own), _MARGIN * self._draft.seconds_of(1) * self.rate
        value, count = 0.0, 1
        while count <= MOST_GUESSES and (won := chance**count - price - self.row_price(count)) > 0:
            value, count = value + won, count + 1
        return value


def _level(sure: float) -> int:
    return sum(sure >= level for level in _LEVELS)
