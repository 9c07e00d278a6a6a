"""When a guess is worth the row that it takes in a step.

A step takes a time of its own and some for each row. Guesses pay where that first part dominates, as it does where few sequences
decode, and cost where rows do. A guess brings one token with a chance; the time that its row takes would bring tokens at the rate
of the whole engine. So it is worth its row if

    chance > seconds of a row * tokens a second

which also makes their ratio the largest (Dinkelbach 1967, "On nonlinear fractional programming"): at the best choice the last guess
that is taken brings as much for its time as all the rest. Both figures are measured, on steps that only decode; a guess has to be
better than that by a margin. The chance comes from how often guesses were right. Nothing here knows a token: what is guessed is
for a drafter to say, and a simulation asks the same questions.
"""

import math
from dataclasses import dataclass

MOST_GUESSES = 16  # at a time
LONGEST_MATCH = 16  # tokens that are compared: a longer match says no more
SHORTEST_MATCH = 2  # one token recurs by chance
_MEMORY = 0.98  # weight of a step relative to the next one: about 50 steps count
_ROW_SHARE = 0.15  # of a step with one row, what a further row is taken to add until steps of several sizes were seen
_PRIOR = 64.0  # how much that counts: rows squared, summed over steps
_LONGEST = (
    3.0  # times the usual step, or what one of as many rows should take: what is longer was held up by something else
)
_LEAST = 0.02
# Guesses at the price bring nothing, and all cost some planning; where nobody waits for a place, a sequence that ends sooner leaves
# its rows to nobody. So they have to be so much better.
_MARGIN = 1.3
_OWN = 0.9  # memory of a request's hits, from one verification to the next
_TRUST = 3.0  # guesses that a request must have seen before its own hits count as much as those of all
_ALL = 0.99  # memory of the hits of all requests
_SUREST = 0.98
# Chance that the next token is the one that followed before, by the length of the match: until guesses were verified.
_FIRST = (0.0, 0.15, 0.35, 0.5, *[0.65] * 4, *[0.8] * (LONGEST_MATCH - 7))


class RowPrice:
    """Measures what a row of a step must bring."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._tokens = 0.0
        self._squares = self._products = self._besides = 0.0

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded computed so many rows and brought so many tokens in this time."""
        if seconds <= 0 or not rows:
            return
        if self._weight > 1:
            seconds = min(seconds, _LONGEST * max(self._seconds / self._weight, self.seconds_of(rows)))
        self._weight = _MEMORY * self._weight + 1
        self._rows = _MEMORY * self._rows + rows
        self._seconds = _MEMORY * self._seconds + seconds
        self._besides *= _MEMORY
        self._tokens = _MEMORY * self._tokens + tokens
        self._squares = _MEMORY * self._squares + rows * rows
        self._products = _MEMORY * self._products + rows * seconds

    @property
    def chance(self) -> float:
        """With what chance a guess must be right to be worth its row."""
        if not self._weight:
            return _MARGIN * _ROW_SHARE
        return max(_LEAST, _MARGIN * self.row_seconds * self.rate)

    def spend(self, seconds: float) -> None:
        """Guessing took so long, besides the steps."""
        self._besides += seconds

    @property
    def rate(self) -> float:
        """Tokens a second; 0 until there was a step."""
        return self._tokens / (self._seconds + self._besides) if self._weight else 0.0

    def seconds_of(self, rows: int) -> float:
        """What a step of so many rows takes; 0 until there was one."""
        if not self._weight:
            return 0.0
        usual, seconds = self._rows / self._weight, self._seconds / self._weight
        return max(0.0, seconds + self.row_seconds * (rows - usual))

    @property
    def row_seconds(self) -> float:
        """What a row adds: slope of the line through (rows, seconds) of recent steps, drawn towards what is taken for granted."""
        if not self._weight:
            return 0.0
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        spread = max(0.0, self._squares - self._weight * rows * rows)
        together = self._products - self._weight * rows * seconds
        usual = _ROW_SHARE * seconds / (1 + _ROW_SHARE * (rows - 1))
        return max(0.0, together + _PRIOR * usual) / (spread + _PRIOR)


@dataclass(slots=True)
class OwnHits:
    """How many of one request's guesses were right, and how many were looked at; older ones count less."""

    hits: float = 0.0
    trials: float = 0.0

    def learn(self, proposed: int, accepted: int) -> int:
        """So many were right of those that a step had. Returns how many were looked at: the first wrong one is the last."""
        trials = min(accepted + 1, proposed)
        self.hits = _OWN * self.hits + accepted
        self.trials = _OWN * self.trials + trials
        return trials


class HitChances:
    """How often the first guess after a match of each length was right, over all requests."""

    def __init__(self) -> None:
        self._hits = [10 * chance for chance in _FIRST]
        self._trials = [10.0] * len(_FIRST)

    def of(self, length: int, own: OwnHits) -> float:
        """For a request after such a match, its own experience included."""
        usual = self._hits[length] / self._trials[length]
        return min(_SUREST, (own.hits + _TRUST * usual) / (own.trials + _TRUST))

    def learn(self, length: int, hits: int, trials: int) -> None:
        """So many guesses in a row were right, of so many that were looked at."""
        self._hits[length] = _ALL * self._hits[length] + hits
        self._trials[length] = _ALL * self._trials[length] + trials


def worth_guessing(chance: float, price: float) -> int:
    """How many guesses in a row are worth their rows, if each is right with this chance where all before it were."""
    return int(math.log(price) / math.log(chance)) if price < chance else 0
