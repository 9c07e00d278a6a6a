"""A sequence's tokens, in which the newest ones are looked for: what followed them before may follow them again.

Prompt lookup (Saxena 2023, "Prompt Lookup Decoding"; as "n-gram" in vLLM): answers repeat their prompts where they edit, quote or
summarize, and themselves. A text that the client predicts (OpenAI's `prediction`) is one more place to look.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from scheduler.worth import LONGEST_MATCH, SHORTEST_MATCH

Tokens = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.intp]
PREDICTED = 4  # tokens that a match in a prediction counts as at least: who predicts a text means it
PLACES = 512  # of one token that are looked at: a text of one token alone has as many as tokens


class TokenHistory:
    """The tokens of one sequence, behind those of a prediction. Four bytes a token, no index: a look is a few passes over them.

    Args:
        prediction: what the answer may be like; may be empty.
    """

    def __init__(self, prediction: Sequence[int] = ()) -> None:
        self._tokens = np.empty(max(1024, 2 * len(prediction)), dtype=np.int32)
        self._tokens[: len(prediction)] = prediction
        self._predicted = self._size = len(prediction)
        self._place = 0  # in the prediction, where the answer is believed to be

    def follow(self, tokens: Sequence[int]) -> None:
        """Take in what is new: `tokens` are all of the sequence."""
        new = tokens[self._size - self._predicted :]
        if self._size + len(new) > len(self._tokens):
            self._tokens = np.resize(self._tokens, 2 * (self._size + len(new)))
        self._tokens[self._size : self._size + len(new)] = new
        self._size += len(new)

    def look(self, most: int) -> tuple[int, list[int]]:
        """How many of the newest tokens were found in a row somewhere before, and at most `most` tokens that followed there."""
        length, place = self._find()
        if not length:
            return 0, []
        if place < self._predicted:
            self._place = place
            return max(length, PREDICTED), self._tokens[place : min(place + most, self._predicted)].tolist()
        following = self._tokens[place : min(place + most, self._size)].tolist()
        while following and len(following) < most:  # it repeats itself, and may go on so
            following += following[: most - len(following)]
        return length, following

    @property
    def newest(self) -> Tokens:
        """The last tokens of the sequence; not to be kept."""
        return self._tokens[max(self._predicted, self._size - LONGEST_MATCH) : self._size]

    def since(self, place: int) -> Tokens:
        """The sequence's tokens from a position on, as far as they were taken in."""
        return self._tokens[self._predicted + place : self._size].copy()

    def _near(self, places: IntArray) -> IntArray:
        """The latest, and those around where the prediction stands."""
        inside = places[: places.searchsorted(self._predicted)]
        if not len(inside):
            return latest(places)
        at = int(inside.searchsorted(self._place))
        return np.concatenate([inside[max(0, at - PLACES // 2) : at + PLACES // 2], latest(places[len(inside) :])])

    def _find(self) -> tuple[int, int]:
        """Of the longest match its length, and the place behind it; of several, the one nearest to where the prediction stands, or
        the latest."""
        tokens = self._tokens[: self._size]
        length, found = longest_match(tokens[:-1], tokens[-LONGEST_MATCH:], self._near)
        if not length:
            return 0, 0
        inside = found[found < self._predicted - 1] if self._predicted else found[:0]
        if len(inside):
            return length, int(inside[np.abs(inside + 1 - self._place).argmin()]) + 1
        return (length, int(found[-1]) + 1) if length >= SHORTEST_MATCH else (0, 0)


def latest(places: IntArray) -> IntArray:
    """As many as are looked at."""
    return places[-PLACES:]


def longest_match(
    tokens: Tokens, newest: Tokens, some: Callable[[IntArray], IntArray] = latest
) -> tuple[int, IntArray]:
    """How many of the newest tokens stand in a row somewhere in `tokens`, at most all, and where the last of them does.

    `some` says at which of the places of the newest token to look.
    """
    places = found = some(np.flatnonzero(tokens == newest[-1]))
    length = 0
    while len(places):
        length, found = length + 1, places
        if length == len(newest):
            break
        places = places[places >= length]
        places = places[tokens[places - length] == newest[-1 - length]]
    return length, found
