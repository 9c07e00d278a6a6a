"""When text of an answer came: 8 bytes for each event, or 16 where events bring several tokens; a list of pairs takes 100."""

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

TokenEvent = tuple[float, int]  # when text came, in seconds of the run, and how many tokens it had


class TokenTimes(Sequence[TokenEvent]):
    """Reads like a list of events.

    Attributes:
        at: their times, in order; whoever fills it in appends there.
        counts: the tokens of each; None: one each.

    Raises:
        ValueError: there are more times than counts, or fewer.
    """

    __slots__ = ("at", "counts")

    def __init__(self, at: Iterable[float] = (), counts: Iterable[int] | None = None) -> None:
        self.at = array("d", at)
        self.counts = None if counts is None else array("q", counts)
        if self.counts is not None and len(self.counts) != len(self.at):
            raise ValueError(f"{len(self.at)} times of events, and {len(self.counts)} counts of tokens")

    @classmethod
    def of(cls, events: Sequence[TokenEvent]) -> "TokenTimes":
        """The events of any sequence; themselves if they are kept so already."""
        if isinstance(events, TokenTimes):
            return events
        counts = [count for _, count in events]
        return cls((at for at, _ in events), None if set(counts) <= {1} else counts)

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, place: int) -> TokenEvent: ...

    @overload
    def __getitem__(self, place: slice) -> "TokenTimes": ...

    def __getitem__(self, place: int | slice) -> "TokenEvent | TokenTimes":
        counts = self.counts
        if isinstance(place, slice):
            return TokenTimes(self.at[place], None if counts is None else counts[place])
        return self.at[place], 1 if counts is None else counts[place]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenTimes) and self.counts is None and other.counts is None:
            return self.at == other.at
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        counted = "" if self.counts is None else f", {list(self.counts)}"
        return f"TokenTimes({list(self.at)}{counted})"


def tokens_in(events: Sequence[TokenEvent]) -> int:
    """How many tokens these events brought."""
    known = TokenTimes.of(events)
    return len(known) if known.counts is None else sum(known.counts)
