"""Answers that go on as they did before, for stretches, and a drafter that notices.

A server looks up what followed an answer's newest tokens before (`engine/drafting/lookup.py`). A simulation has no text, so whether
there is something to be found is drawn, for each answer anew, as a chain of two states: at each token the answer may begin to
repeat what was there, and at each further one it may end. While it repeats, guesses are right. How many are made is what a server
decides, by the same objects (`scheduler/worth.py`) and the times of simulated steps: none where rows cost what they bring.

Left out: guesses after short matches that are mostly wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from loadtest.simulate.specs import Costs
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams
from scheduler.worth import (
    LONGEST_MATCH,
    MOST_GUESSES,
    SHORTEST_MATCH,
    HitChances,
    OwnHits,
    RowPrice,
    worth_guessing,
)


@dataclass(slots=True)
class _Answer:
    """One answer: which of its tokens a look finds, as far as was asked, and how its guesses did.

    Args:
        begins, ends: see `RepeatingAnswers`.
        draws: of this answer alone.
    """

    begins: float
    ends: float

    draws: Random
    found: list[bool] = field(default_factory=list)
    own: OwnHits = field(default_factory=OwnHits)
    match: int = 0  # length of that of the last guesses

    def matched(self, place: int) -> int:
        """How many of the newest tokens before `place` a look finds in a row; 0 if what it finds is wrong."""
        if not self.row(place, 1):
            return 0
        before = self.found[max(0, place - LONGEST_MATCH) : place][::-1]
        return min(LONGEST_MATCH, SHORTEST_MATCH + (before.index(False) if False in before else len(before)))

    def row(self, place: int, most: int) -> int:
        """How many tokens from `place` on a look finds, of `most`."""
        while len(self.found) < place + most:
            repeats = bool(self.found) and self.found[-1]
            chance = 1 - self.ends if repeats else self.begins
            self.found.append(self.draws.random() < chance)
        ahead = self.found[place : place + most]
        return ahead.index(False) if False in ahead else len(ahead)


class RepeatingAnswers:
    """The drafter of one replica.

    Args:
        begins: chance at each token of an answer that a stretch begins, in which each token is one that a look finds.
        ends: chance at each further token that it has ended.
        seed: of what is drawn; one request draws the same under any load.
    """

    name = "repeating answers"
    reads_predictions = False

    def __init__(self, begins: float, ends: float, seed: int = 0) -> None:
        self._begins, self._ends, self._seed = begins, ends, seed
        self._price = RowPrice()
        self._hits = HitChances()
        self._answers: dict[str, _Answer] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """All."""
        return True

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Always, as on a CPU: a sequence that is held back is computed with the next step all the same."""
        return True

    def propose(self, candidates: Sequence[DraftCandidate]) -> list[list[int]]:
        """As many as are worth their rows, where an answer repeats itself. Their ids say nothing."""
        price = self._price.chance
        return [[0] * self._many(candidate, price) for candidate in candidates]

    def accepted(self, request_id: str, place: int, proposed: int) -> int:
        """How many of the guesses for tokens from `place` of an answer on are right."""
        return self._answers[request_id].row(place, proposed)

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Learn from what became of guesses."""
        answer = self._answers.get(request_id)
        if answer is not None:
            self._hits.learn(answer.match, accepted, answer.own.learn(proposed, accepted))

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded has ended."""
        self._price.observe(rows, tokens, seconds)

    def forget(self, request_id: str) -> None:
        """The request has ended."""
        self._answers.pop(request_id, None)

    def _many(self, candidate: DraftCandidate, price: float) -> int:
        name, place = candidate.request_id, len(candidate.token_ids) - candidate.prompt_length
        if name not in self._answers:
            self._answers[name] = _Answer(self._begins, self._ends, Random(f"{self._seed} {name}"))
        answer = self._answers[name]
        answer.match = answer.matched(place)
        worth = worth_guessing(self._hits.of(answer.match, answer.own), price) if answer.match else 0
        return min(worth, candidate.most, MOST_GUESSES)


def drawn_guesses(costs: Costs, seed: int = 0) -> RepeatingAnswers | None:
    """What guesses in a replica with these constants; None: nothing does."""
    return RepeatingAnswers(costs.repeat_begins, costs.repeat_ends, seed) if costs.repeat_begins else None
