"""Guesses of a draft model: a small model of the same tokens says how it would go on (Leviathan et al. 2023).

Its guesses are coupled with the answer: it draws by the request's own seed and position, as the model will, after the same biases,
penalties and bad words. So where both find a token likely, both draw it. (In rejection sampling the two draw apart, and a guess is
kept with a probability; Daliri et al. 2025, "Coupling without communication and drafter-invariant speculative decoding", for
shared randomness.) Grammars are left out: what they leave no choice about is guessed by who knows them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.drafting.draft_model import DraftModel, Guess
from engine.drafting.draft_worth import DraftWorth, OwnGuesses
from engine.drafting.drafted_sequences import DraftedSequence, DraftedSequences
from engine.sequence_input import SequenceInput
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams
from scheduler.worth import MOST_GUESSES

CATCH_UP_ROWS = 32  # rows of one call that compute KV which is missing: what all others wait for


@dataclass(slots=True)
class _Guessing:
    """One candidate while guesses are made for it."""

    candidate: DraftCandidate
    sequence: DraftedSequence
    own: OwnGuesses
    chance: float = 1.0  # that all guesses so far are right
    guesses: list[int] = field(default_factory=list)

    def awaited(self, worth: DraftWorth) -> float:
        """The chance that a further guess counts."""
        return self.chance * worth.next_chance(self.own)


class ModelDrafter:
    """Proposes what a draft model would go on with, as far as it pays.

    Args:
        model: the draft.
        run: does some work in the worker's thread, and waits for it.
        worth: decides.
        at_once: whether a worker takes one step at a time.
        clock: seconds.
    """

    reads_predictions = False

    def __init__(
        self,
        model: DraftModel,
        run: Callable[[Callable[[], object]], object],
        worth: DraftWorth,
        *,
        at_once: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = f"draft model {model.name}"
        self._model = model
        self._run = run
        self._worth = worth
        self._at_once = at_once
        self._clock = clock
        self._sequences = DraftedSequences(model.blocks, model.block_size)
        self._own: dict[str, OwnGuesses] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request lets anybody guess."""
        return sampling.speculation

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Where it costs nothing, unless guesses do not pay."""
        return self._at_once and not self._worth.rests(known + 1)

    def propose(self, candidates: Sequence[DraftCandidate]) -> list[list[int]]:
        """What the draft would go on with, for those whose KV it has or gets in this call."""
        found: dict[str, list[int]] = {}
        asked = [each for each in candidates if self._can(each) and not self._worth.rests(len(each.token_ids))]
        chances = [self._worth.next_chance(self._own_of(each)) for each in asked]
        if asked and self._worth.promising(chances, len(candidates)):
            self._run(lambda: self._draft(asked, len(candidates), found))
        return [found.get(each.request_id, []) for each in candidates]

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Learn from what became of guesses."""
        sequence = self._sequences.find(request_id)
        if sequence is not None:
            self._worth.verified(self._own_by(request_id), sequence.chances[:proposed], accepted)

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A step that only decoded has ended."""
        self._worth.observe(rows, tokens, seconds)

    def forget(self, request_id: str) -> None:
        """Drop all that is kept for it."""
        self._own.pop(request_id, None)
        sequence = self._sequences.forget(request_id)
        if sequence is not None:
            self._worth.ended(sequence.known - sequence.tokens.prompt_length)
            self._model.forget(request_id)

    def value(self, request_id: str) -> float:
        """Tokens that its guesses for a request may bring beyond their price now; 0 where it has no KV to go on from."""
        sequence = self._sequences.find(request_id)
        if sequence is None or not sequence.computed or self._worth.rests(0):
            return 0.0
        return self._worth.value(self._own_by(request_id))

    def _own_by(self, request_id: str) -> OwnGuesses:
        return self._own.setdefault(request_id, OwnGuesses())

    def _own_of(self, candidate: DraftCandidate) -> OwnGuesses:
        return self._own_by(candidate.request_id)

    def _can(self, candidate: DraftCandidate) -> bool:
        """Whether the draft is made for a sequence as long, and for its tokens."""
        known = self._sequences.find(candidate.request_id)
        new = candidate.token_ids[known.known if known is not None else 0 :]
        return len(candidate.token_ids) + 1 < self._model.context and max(new, default=0) < self._model.vocab_size

    # --- in the worker's thread ---

    def _draft(self, candidates: Sequence[DraftCandidate], step: int, found: dict[str, list[int]]) -> None:
        """Compute what is missing, then guess for those that lack nothing, a token each at a time. `step`: rows so far."""
        names = {each.request_id for each in candidates}
        ready = [each for candidate in candidates if (each := self._ready(candidate, names)) is not None]
        ready = self._catch_up(ready)
        while ready:
            price = self._worth.row_price(step, len(ready))
            ready = [each for each in ready if each.awaited(self._worth) > price]
            rows = sum(len(each.sequence.tokens.tokens) - each.sequence.computed for each in ready)
            if not ready or not self._worth.pays([each.awaited(self._worth) for each in ready], step, rows):
                return
            ready = self._guess(ready, found, self._worth.row_price(step, len(ready)))
            step += len(ready)
            ready = [each for each in ready if self._may_go_on(each)]

    def _ready(self, candidate: DraftCandidate, names: set[str]) -> _Guessing | None:
        """What is kept of a candidate, with room for its guesses; None if it is not worth it or there is no room."""
        sequence = self._sequences.of(candidate)
        if sequence.follow(candidate.token_ids):
            self._model.forget(candidate.request_id)
        sequence.chances = []
        made = len(candidate.token_ids) - candidate.prompt_length
        if sequence.missing > MOST_GUESSES + 1 and not self._worth.worth_catching_up(sequence.missing, made):
            return None
        tokens = min(sequence.known + min(candidate.most, MOST_GUESSES), self._model.context)
        if not self._sequences.reserve(sequence, tokens, names):
            return None
        return _Guessing(candidate, sequence, self._own_of(candidate))

    def _catch_up(self, guessing: list[_Guessing]) -> list[_Guessing]:
        """Compute KV of tokens that are known, so many rows of it. Returns those that lack none."""
        behind = [each for each in guessing if each.sequence.missing > MOST_GUESSES + 1]
        room, inputs = CATCH_UP_ROWS, []
        for each in behind:
            rows = min(room, each.sequence.missing - 1)
            if rows:
                inputs.append(_input(each.sequence, rows, wanted=0))
                each.sequence.computed += rows
                room -= rows
        if inputs:
            self._timed(inputs, [], new=False)
        return [each for each in guessing if each.sequence.missing <= MOST_GUESSES + 1]

    def _guess(self, guessing: list[_Guessing], found: dict[str, list[int]], price: float) -> list[_Guessing]:
        """One more guess for each. Returns those that have one which is likelier than `price`, so that it is worth its row."""
        sequences = [each.sequence for each in guessing]
        inputs = [_input(each, len(each.tokens.tokens) - each.computed, wanted=1) for each in sequences]
        guesses = self._timed(inputs, sequences, new=True)
        going_on = []
        for each, guess in zip(guessing, guesses, strict=True):
            each.sequence.computed = len(each.sequence.tokens.tokens)
            if guess.token is None:
                continue
            chance = each.chance * self._worth.estimated(each.own, guess.chance)
            if chance > price:
                each.chance = chance
                each.guesses.append(guess.token)
                each.sequence.tokens.tokens.append(guess.token)
                each.sequence.chances.append(guess.chance)
                found[each.candidate.request_id] = each.guesses
                going_on.append(each)
        return going_on

    def _may_go_on(self, each: _Guessing) -> bool:
        """Whether a further guess could be used."""
        return len(each.guesses) < min(each.candidate.most, MOST_GUESSES) and (
            len(each.sequence.tokens.tokens) < self._model.context
        )

    def _timed(self, inputs: list[SequenceInput], sequences: list[DraftedSequence], *, new: bool) -> list[Guess]:
        began = self._clock()
        guesses = self._model.compute(inputs, [each.tokens for each in sequences])
        self._worth.drafted(sum(len(each.token_ids) for each in inputs), self._clock() - began, new=new)
        return guesses


def _input(sequence: DraftedSequence, rows: int, *, wanted: int) -> SequenceInput:
    """The next so many tokens whose KV the draft lacks."""
    end = sequence.computed + rows
    return SequenceInput(
        token_ids=sequence.tokens.tokens[sequence.computed : end],
        start=sequence.computed,
        block_table=sequence.table,
        wanted=wanted,
    )
