"""The events of all requests of a run, read piece by piece: a run may have more tokens than arrays for each of them would fit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loadtest.report.token_times import TokenEvent, TokenTimes

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Flags: TypeAlias = npt.NDArray[np.bool_]
Names: TypeAlias = npt.NDArray[np.str_]

PIECE = 1 << 20  # events that are looked at together: 8 MiB of times


@dataclass(frozen=True, slots=True)
class EventPiece:
    """Events of some requests, one request after the other.

    Attributes:
        lengths: [requests] events of each.
        at: [events] when they came, in seconds.
        count: [events] tokens of each.
    """

    lengths: Ints
    at: Floats
    count: Floats

    @property
    def later(self) -> Flags:
        """[events] Whether an event is not the first of its request: there is a gap before it."""
        later = np.ones(self.at.size, dtype=np.bool_)
        later[(np.cumsum(self.lengths) - self.lengths)[self.lengths > 0]] = False
        return later

    @property
    def gaps(self) -> Floats:
        """[later events] The time from the event before."""
        return np.diff(self.at)[self.later[1:]]


class Events:
    """When text came in each answer.

    Args:
        tokens: of each request.

    Attributes:
        lengths: [requests] events of each.
    """

    def __init__(self, tokens: Sequence[Sequence[TokenEvent]]) -> None:
        self._tokens = tokens
        self.lengths: Ints = np.array([len(each) for each in tokens], dtype=np.int64)

    def pieces(self, chosen: Flags | None = None) -> Iterator[EventPiece]:
        """The events of all requests, or of the `chosen`: of as many together as have no more than `PIECE`, and at least of one."""
        places = np.arange(len(self._tokens)) if chosen is None else np.flatnonzero(chosen)
        ends = np.cumsum(self.lengths[places])
        begin = 0
        while begin < places.size:
            before = ends[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + PIECE, side="right")))
            yield self._piece(places[begin:end])
            begin = end

    def _piece(self, places: Ints) -> EventPiece:
        kept = [TokenTimes.of(self._tokens[place]) for place in places]
        at = np.frombuffer(b"".join([each.at for each in kept]), dtype=np.float64)
        count = np.ones(at.size)
        if any(each.counts is not None for each in kept):
            count = np.array([number for each in kept for _, number in each], dtype=np.float64)
        return EventPiece(self.lengths[places], at, count)

    def gaps(self, chosen: Flags) -> Floats:
        """The time between neighbouring events of the `chosen` requests, in their order: [gaps]."""
        found = np.empty(int(np.maximum(self.lengths[chosen] - 1, 0).sum()))
        begin = 0
        for piece in self.pieces(chosen):
            gaps = piece.gaps
            found[begin : begin + gaps.size] = gaps
            begin += gaps.size
        return found

    def gap_owners(self, chosen: Flags, step: int = 1) -> Ints:
        """The requests of these gaps, or of every so many-th."""
        places = np.flatnonzero(chosen)
        ends = np.cumsum(np.maximum(self.lengths[places] - 1, 0))
        return places[np.searchsorted(ends, np.arange(0, ends[-1] if ends.size else 0, step), side="right")]
