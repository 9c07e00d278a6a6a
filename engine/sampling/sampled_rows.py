"""After which rows of a forward pass a step samples, and how its tokens are booked.

A chunk samples after its last `Chunk.samples` rows, in turn: the second row counts only if the token sampled after the first is
the draft that stands there, and so on. Each token is drawn at its own position with all tokens before it known, so a sequence
comes out as it would without drafts, greedy or not, with penalties or without.
"""

import collections.abc
from dataclasses import dataclass

from engine.sampling.prompt_logprobs import wanted
from engine.sampling.sampler import Sampled
from engine.sequence import Sequence
from scheduler.types.step import Chunk, ChunkResult


@dataclass(frozen=True, slots=True)
class SampledRow:
    """A row that a token is sampled after.

    Attributes:
        place: of its chunk in the step.
        row: of the step's results, [rows wanted, hidden].
        draft_ids: guesses of the tokens after it; each stands in the row behind the one before.
    """

    place: int
    row: int
    draft_ids: collections.abc.Sequence[int] = ()

    def take(self, token: Sampled, sequence: Sequence, result: ChunkResult) -> "SampledRow | None":
        """Append what was sampled here, or note the error. Returns the next row if the token is the one guessed."""
        if token.error is not None:
            result.error = token.error
            return None
        sequence.tokens.append(token.token_id)
        result.token_ids.append(token.token_id)
        if token.logprobs is not None:
            result.logprobs.append(token.logprobs)
        if not self.draft_ids or self.draft_ids[0] != token.token_id:
            return None
        return SampledRow(self.place, self.row + 1, self.draft_ids[1:])


def first_rows(
    chunks: collections.abc.Sequence[Chunk],
    sequences: collections.abc.Sequence[Sequence],
    results: collections.abc.Sequence[ChunkResult],
) -> list[SampledRow]:
    """The row of each chunk after which its first token is sampled; none of chunks that do not sample or have failed."""
    rows, end = [], 0
    for place, (chunk, sequence, result) in enumerate(zip(chunks, sequences, results, strict=True)):
        end += wanted(chunk, sequence)
        if chunk.samples and result.error is None:
            rows.append(SampledRow(place, end - chunk.samples, chunk.draft_ids))
    return rows
