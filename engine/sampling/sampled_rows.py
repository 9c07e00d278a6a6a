"""The rows of a forward pass whose results are wanted, those that a step samples after, and what becomes of the tokens.

A chunk samples after its last `Chunk.samples` rows, in turn: the second row counts only if the token sampled after the first is
the draft in it, and so on. Each token is drawn at its own position with all tokens before it known, so a sequence comes out as it
would without drafts, greedy or not, with penalties or without.
"""

import collections.abc

from engine.pooling.pooler import Poolers
from engine.sampling.sampler import Sampled
from engine.sequence import Sequence
from scheduler.types.output_kind import OutputKind
from scheduler.types.step import Chunk, ChunkResult

# A row that a token is sampled after: the place of its chunk in the step, its index in the step's results ([rows wanted, hidden]),
# and guesses at the tokens after it, one in each of the rows that follow. There is one for each sequence of each step, and a named
# tuple takes six times as long to make.
SampledRow = tuple[int, int, collections.abc.Sequence[int]]


def wanted_rows(chunk: Chunk, sequence: Sequence, poolers: Poolers) -> int:
    """How many of a chunk's last rows need their hidden states returned: those to sample after, or to pool, or all of a prompt
    that is scored."""
    if sequence.produces is not OutputKind.TOKENS:
        return poolers[sequence.produces].rows(chunk, sequence)
    return chunk.length if sequence.sampling.prompt_logprobs is not None else chunk.samples


def take(
    row: SampledRow,
    token: Sampled,
    sequence: Sequence,
    result: ChunkResult,
    complete: collections.abc.Callable[[Sequence], bool],
) -> SampledRow | None:
    """Append what was sampled after the row, or note the error. Returns the next row if the token is the guessed one.

    `complete` says whether nothing may follow what a sequence has.
    """
    if token.error is not None:
        result.error = token.error
        return None
    sequence.tokens.append(token.token_id)
    result.token_ids.append(token.token_id)
    if token.logprobs is not None:
        result.logprobs.append(token.logprobs)
    result.complete = complete(sequence)
    place, index, draft_ids = row
    if result.complete or not draft_ids or draft_ids[0] != token.token_id:
        return None
    return place, index + 1, draft_ids[1:]


def first_rows(
    chunks: collections.abc.Sequence[Chunk],
    wanted: collections.abc.Sequence[int],
    results: collections.abc.Sequence[ChunkResult],
) -> list[SampledRow]:
    """The row of each chunk after which its first token is sampled; chunks that do not sample or have failed have none.

    `wanted` says how many rows each chunk has.
    """
    rows: list[SampledRow] = []
    end = 0
    for place, (chunk, rows_of_chunk, result) in enumerate(zip(chunks, wanted, results, strict=True)):
        end += rows_of_chunk
        if chunk.samples and result.error is None:
            rows.append((place, end - chunk.samples, chunk.draft_ids))
    return rows
