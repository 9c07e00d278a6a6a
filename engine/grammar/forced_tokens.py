"""What a grammar leaves no choice about, such as names of properties: proposed as guesses, which a step computes as one chunk.

A text that must follow can be spelled by several sequences of tokens. llguidance spells it in one way, and its masks allow no other
there, so the guesses are always right: the answer is the same, in fewer steps (Willard and Louf 2023, "Efficient guided generation
for large language models", section 4, for the idea; llguidance's "fast-forward tokens"). A CPU computes the head for none of them
(`CpuSampler.certain`), a GPU draws them like other guesses.
"""

from collections.abc import Sequence

from engine.grammar.matchers import Grammars
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams

# Tokens: the next one is being computed, and holding a sequence back for one guess would gain nothing.
_WORTH_WAITING = 3


class ForcedTokens:
    """Proposes the tokens of one worker's grammars.

    Args:
        grammars: the worker's.
        at_once: whether a worker takes one step at a time, and gets sequences that were held back with the very next one.
    """

    name = "forced tokens of grammars"
    reads_predictions = False

    def __init__(self, grammars: Grammars, *, at_once: bool) -> None:
        self._grammars = grammars
        self._at_once = at_once

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request has a grammar."""
        return bool(sampling.grammar)

    def waits(self, request_id: str, sampling: SamplingParams, known: int) -> bool:
        """Where it costs nothing, always; otherwise if more than the next token must follow."""
        return self._at_once or len(self._grammars.forced(request_id, known)) >= _WORTH_WAITING

    def propose(self, candidates: Sequence[DraftCandidate]) -> list[list[int]]:
        """What must follow."""
        return [
            self._grammars.forced(candidate.request_id, len(candidate.token_ids))[: candidate.most]
            for candidate in candidates
        ]

    def verified(self, request_id: str, proposed: int, accepted: int) -> None:
        """Nothing: it was known."""

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """Nothing: they always pay."""

    def forget(self, request_id: str) -> None:
        """Nothing: the worker forgets."""
