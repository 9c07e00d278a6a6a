"""Deadlines: what a router quotes for a request, and how well what was promised is kept.

A request that says by when it needs its first token, or its end, is accepted if the quote is within its deadline, and otherwise
refused at once: it would have taken time from others and failed all the same. The quote is what the costs of steps make one expect,
times a margin. The margin follows the outcomes: each promise that took longer than its quote raises it, each other one lowers it a
little, so that in the long run a small share of quotes is exceeded (stochastic approximation of a quantile: Robbins and Monro 1951,
"A stochastic approximation method").
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import exp

from scheduler.router.view import ReplicaView

_EXCEEDED = 0.003  # share of quotes that may be: with deadlines beyond their quotes, fewer promises are broken
_GAIN = 0.05  # by how much an exceeded quote raises the logarithm of the margin
_FIRST = 0.3  # the margin's logarithm before anything is known
_LEAST, _MOST = 0.05, 1.5
_SLACK = 0.05  # of a deadline, that is left free: what a quote is off by less does no harm


class DeadlineFor(StrEnum):
    """What has to be there in time."""

    FIRST_TOKEN = "first_token"
    END = "end"


class Outcome(StrEnum):
    """What became of a request with a deadline."""

    KEPT = "kept"
    BROKEN = "broken"  # late, or never there
    REFUSED = "refused"  # at once
    ABANDONED = "abandoned"  # its client left before it was due


@dataclass(frozen=True, slots=True)
class Deadline:
    """Seconds from the request's arrival until something has to be there."""

    seconds: float
    until: DeadlineFor = DeadlineFor.FIRST_TOKEN

    def allows(self, quote: float | None) -> bool:
        """Whether it can be met by this quote, with a little to spare; None: nothing is known that would speak against it."""
        return quote is None or quote <= (1 - _SLACK) * self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class PromiseProgress:
    """How far a request came, in seconds from its arrival; None where it did not get there.

    Attributes:
        first_token: when it came.
        complete: when the last one came of an answer that was complete.
        over: when nobody waited for it any longer.
        failed: whether it ended by no will of its client's.
        disturbed: whether its replica died and another one went on: that says nothing about quotes.
    """

    first_token: float | None
    complete: float | None
    over: float
    failed: bool = False
    disturbed: bool = False


@dataclass(frozen=True, slots=True)
class Promise:
    """An accepted request's. Times are seconds from its arrival.

    Attributes:
        deadline: that was accepted.
        quote: what was expected, with its margin; None: nothing was known.
        learn: told whether the quote was exceeded.
    """

    deadline: Deadline
    quote: float | None
    learn: Callable[[bool], None]

    def ended(self, progress: PromiseProgress) -> Outcome:
        """The request has ended. To be called once."""
        took = progress.first_token if self.deadline.until is DeadlineFor.FIRST_TOKEN else progress.complete
        late = (progress.over if took is None else took) > self.deadline.seconds
        if took is None and progress.failed:
            return Outcome.BROKEN
        if took is None and not late:
            return Outcome.ABANDONED
        if self.quote is not None and not progress.disturbed:
            self.learn(took is None or took > self.quote + _SLACK * self.deadline.seconds)
        return Outcome.BROKEN if late else Outcome.KEPT


class Promises:
    """The quotes of one pool of replicas, and what was learnt from them."""

    def __init__(self) -> None:
        self._margin = _FIRST

    @property
    def margin(self) -> float:
        """Factor on what is expected."""
        return exp(self._margin)

    def quote(
        self,
        deadline: Deadline,
        prefill: ReplicaView,
        decode: ReplicaView,
        tokens: int,
        *,
        hand_over_seconds: float = 0.0,
        waited: float = 0.0,
    ) -> float | None:
        """Seconds from a request's arrival until what it has a deadline for; None where nothing was measured yet.

        Args:
            deadline: the request's.
            prefill: the replica that would compute its prompt.
            decode: the one that would go on; the same one if the request is not handed over.
            tokens: that it will generate, at most.
            hand_over_seconds: from the first token to the next if it is.
            waited: seconds since it arrived.
        """
        if not prefill.measured:
            return None
        seconds = prefill.first_token_seconds
        if deadline.until is DeadlineFor.END and tokens > 1:
            steps = tokens - 1
            if decode is not prefill:
                seconds, steps = seconds + hand_over_seconds, steps - 1
            seconds += steps * decode.decode_seconds
        return waited + seconds * self.margin

    def promise(self, deadline: Deadline, quote: float | None) -> Promise:
        """The request is accepted."""
        return Promise(deadline, quote, self._learn)

    def _learn(self, exceeded: bool) -> None:
        step = _GAIN if exceeded else -_GAIN * _EXCEEDED / (1 - _EXCEEDED)
        self._margin = min(_MOST, max(_LEAST, self._margin + step))
