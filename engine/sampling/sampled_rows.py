"""The rows of a forward pass that a step samples after, and what becomes of the tokens.

A chunk samples after its last `Chunk.samples` rows, in turn: the second row counts only if the token sampled after the first is
the draft in it, and so on. Each token is drawn at its own position with all tokens before it known, so a sequence comes out as it
would without drafts, greedy or not, with penalties or without.
"""

import collections.abc
from typing import NamedTuple

from engine.sampling.prompt_logprobs import wanted
from engine.sampling.sampler import Sampled
from engine.sequence import Sequence
from scheduler.types.step import Chunk, ChunkResult


class SampledRow(NamedTuple):
    """A row that a token is sampled after.

    Attributes:
        place: index of its chunk in the step.
        row: its index in the step's results, [rows wanted, hidden].
        draft_ids: guesses at the tokens after it, one in each of the rows that follow.
    """

    place: int
    row: int
    draft_ids: collections.abc.Sequence[int] = ()

    def take(self, token: Sampled, sequence: Sequence, result: ChunkResult) -> "SampledRow | None":
        """Append what was sampled here, or note the error. Returns the next row if the token is the guessed one."""
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
    """The row of each chunk after which its first token is sampled; chunks that do not sample or have failed have none."""
    rows, end = [], 0
    for place, (chunk, sequence, result) in enumerate(zip(chunks, sequences, results, strict=True)):
        end += wanted(chunk, sequence)
        if chunk.samples and result.error is None:
            rows.append(SampledRow(place, end - chunk.samples, chunk.draft_ids))
    return rows
