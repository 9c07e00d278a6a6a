"""When a guess is worth the row that it takes in a step.

A step takes a time of its own and some for each row. Guesses pay where that first part dominates, as it does where few sequences
decode, and cost where rows do. A guess brings one token with a chance; the time that its row takes would bring tokens at the rate
of the whole engine. So it is worth its row if

    chance > seconds of a row * tokens a second

which also makes their ratio the largest (Dinkelbach 1967, "On nonlinear fractional programming"): at the best choice the last guess
that is taken brings as much for its time as all the rest. Both figures are measured, on steps that only decode; a guess has to be
better than that by a margin.
"""

_MEMORY = 0.98  # weight of a step relative to the next one: about 50 steps count
_ROW_SHARE = 0.15  # of a step with one row, what a further row is taken to add until steps of several sizes were seen
_PRIOR = 64.0  # how much that counts: rows squared, summed over steps
_LONGEST = 3.0  # times the usual step: what is longer was held up by something else
_LEAST = 0.02
# Guesses at the price bring nothing, and all cost some planning; where nobody waits for a place, a sequence that ends sooner leaves
# its rows to nobody. So they have to be so much better.
_MARGIN = 1.3


class RowPrice:
    """Measures what a row of a step must bring."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._tokens = 0.0
        self._squares = self._products = 0.0

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded computed so many rows and brought so many tokens in this time."""
        if seconds <= 0 or not rows:
            return
        if self._weight > 1:
            seconds = min(seconds, _LONGEST * self._seconds / self._weight)
        self._weight = _MEMORY * self._weight + 1
        self._rows = _MEMORY * self._rows + rows
        self._seconds = _MEMORY * self._seconds + seconds
        self._tokens = _MEMORY * self._tokens + tokens
        self._squares = _MEMORY * self._squares + rows * rows
        self._products = _MEMORY * self._products + rows * seconds

    @property
    def chance(self) -> float:
        """With what chance a guess must be right to be worth its row."""
        if not self._weight:
            return _MARGIN * _ROW_SHARE
        return max(_LEAST, _MARGIN * self._row_seconds() * self._tokens / self._seconds)

    def _row_seconds(self) -> float:
        """Slope of the line through (rows, seconds) of recent steps, drawn towards what is taken for granted."""
        rows, seconds = self._rows / self._weight, self._seconds / self._weight
        spread = max(0.0, self._squares - self._weight * rows * rows)
        together = self._products - self._weight * rows * seconds
        usual = _ROW_SHARE * seconds / (1 + _ROW_SHARE * (rows - 1))
        return max(0.0, together + _PRIOR * usual) / (spread + _PRIOR)
