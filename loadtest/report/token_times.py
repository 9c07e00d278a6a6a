"""When the tokens of an answer came, of which each event brought one: 8 bytes for each, where a list of pairs takes 100."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

TokenEvent = tuple[float, int]  # when text came, in seconds of the run, and how many tokens it had


class TokenTimes(Sequence[TokenEvent]):
    """Reads like a list of events of one token.

    Attributes:
        at: their times, in order; whoever fills it in appends there.
    """

    __slots__ = ("at",)

    def __init__(self, at: Iterable[float] = ()) -> None:
        self.at = array("d", at)

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, place: int) -> TokenEvent: ...

    @overload
    def __getitem__(self, place: slice) -> "TokenTimes": ...

    def __getitem__(self, place: int | slice) -> "TokenEvent | TokenTimes":
        return TokenTimes(self.at[place]) if isinstance(place, slice) else (self.at[place], 1)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenTimes):
            return self.at == other.at
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"TokenTimes({list(self.at)})"


def tokens_in(events: Sequence[TokenEvent]) -> int:
    """How many tokens these events brought."""
    return len(events) if isinstance(events, TokenTimes) else sum(count for _, count in events)
