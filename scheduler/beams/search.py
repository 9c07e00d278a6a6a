"""The search alone: which continuations of which beams go on, which texts are whole, when it ends. Nothing here runs anything."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest

from scheduler.types.beams import BeamParams
from scheduler.types.messages import FinishReason
from scheduler.types.step import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Beam:
    """A text so far: the beam that it continues, and the token after it."""

    score: float  # sum of its tokens' log probabilities
    length: int
    before: "Beam | None" = None
    entry: TokenLogprobs | None = None

    def entries(self) -> list[TokenLogprobs]:
        """Its tokens, the first one first."""
        found: list[TokenLogprobs] = []
        beam: Beam | None = self
        while beam is not None and beam.entry is not None:
            found.append(beam.entry)
            beam = beam.before
        return found[::-1]


@dataclass(frozen=True, slots=True)
class Finished:
    """A whole text and its score, in which its length counts."""

    score: float
    beam: Beam
    reason: FinishReason


class BeamSearch:
    """The search alone, as transformers' `generate(num_beams=width)` has it (`GenerationMixin._beam_search`).

    Args:
        params: width, length penalty, and when to stop.
        ends: whether a token ends a text of this many tokens, itself included; None: it must not come there.
        max_tokens: longest text.
        most: continuations that are looked at in a step, and tokens that each beam has to bring.

    Attributes:
        most: as given.
        running: the beams that go on, the best first.
        finished: the whole texts so far, the best first, at most `width`.
        done: whether the search has ended.
    """

    def __init__(self, params: BeamParams, ends: Callable[[int, int], bool | None], max_tokens: int, most: int) -> None:
        self.running = [Beam(0.0, 0)]
        self.finished: list[Finished] = []
        self.done = False
        self._params = params
        self._ends = ends
        self._max_tokens = max_tokens
        self.most = most

    def advance(self, tops: Sequence[TokenLogprobs]) -> list[tuple[int, TokenLogprobs]]:
        """Go on by a token. `tops`: the likeliest continuations of each running beam, in their order.

        Returns:
            For each beam that runs from now on: the place among the beams before of the one that it continues, and its token.
        """
        length = self.running[0].length + 1
        found = [
            (place, Beam(beam.score + logprob, length, beam, _entry(token, logprob, rank, top)))
            for place, (beam, top) in enumerate(zip(self.running, tops, strict=True))
            for rank, (token, logprob) in enumerate(top.top, 1)
            if self._ends(token, length) is not None
        ]
        best = nlargest(self.most, found, key=lambda each: each[1].score)
        whole = [self._reason(beam) for _, beam in best]
        going = [each for each, reason in zip(best, whole, strict=True) if reason is None][: self._params.width]
        for (_, beam), reason in zip(best[: self._params.width], whole, strict=False):
            if reason is not None:
                self._finish(beam, reason)
        self.done = not going or not self._worth_going_on(going[0][1])
        if self.done:
            self._fill_up(best, whole)
        self.running = [beam for _, beam in going]
        return [(place, beam.entry) for place, beam in going if beam.entry is not None]

    def _reason(self, beam: Beam) -> FinishReason | None:
        assert beam.entry is not None
        if self._ends(beam.entry.token_id, beam.length):
            return FinishReason.STOP
        return FinishReason.LENGTH if beam.length >= self._max_tokens else None

    def _finish(self, beam: Beam, reason: FinishReason) -> None:
        score = beam.score / beam.length**self._params.length_penalty
        self.finished.append(Finished(score, beam, reason))
        self.finished.sort(key=lambda each: -each.score)
        del self.finished[self._params.width :]

    def _worth_going_on(self, best: Beam) -> bool:
        params = self._params
        if len(self.finished) < params.width:
            return True
        if params.early_stopping == "always":
            return False
        longest = params.early_stopping == "never" and params.length_penalty > 0
        length = self._max_tokens if longest else best.length
        return bool(best.score / length**params.length_penalty > self.finished[-1].score)

    def _fill_up(self, best: Sequence[tuple[int, Beam]], whole: Sequence[FinishReason | None]) -> None:
        """A small vocabulary may have fewer texts than beams: then those that were not among the best, and the best once more."""
        for (_, beam), reason in list(zip(best, whole, strict=True))[self._params.width :]:
            if len(self.finished) < self._params.width:
                self._finish(beam, reason or FinishReason.LENGTH)
        while self.finished and len(self.finished) < self._params.width:
            self.finished.append(self.finished[-1])


def _entry(token: int, logprob: float, rank: int, of: TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(token_id=token, logprob=logprob, rank=rank, top=of.top)
