"""`prompt_logprobs`: log-probabilities of the tokens of a prompt, a few rows of logits at a time."""

from collections.abc import Callable

from torch import Tensor

from engine.memory import SCORED_ROWS
from engine.sampling.sampler import CpuSampler
from engine.sequence import Sequence
from scheduler.types.step import Chunk, ChunkResult, TokenLogprobs


def score_prompts(
    hidden: Tensor,
    chunks: list[Chunk],
    sequences: list[Sequence],
    wanted: list[int],
    results: list[ChunkResult],
    *,
    logits: Callable[[Tensor], Tensor],
    sampler: CpuSampler,
) -> None:
    """Fill in log-probabilities of prompt tokens where they are asked for.

    Args:
        hidden: the wanted rows of each chunk, laid end to end, [rows, hidden].
        chunks: of the step.
        sequences: one for each chunk.
        wanted: how many rows each chunk has; all of one that is scored.
        results: one for each chunk; they receive the log-probabilities, or an error.
        logits: the model's head, from [rows, hidden] to fp32 [rows, vocabulary].
        sampler: computes the log-probabilities.
    """
    begin = 0
    for chunk, sequence, count, result in zip(chunks, sequences, wanted, results, strict=True):
        if sequence.sampling.prompt_logprobs is not None:
            try:
                rows = hidden[begin : begin + chunk.length]
                result.prompt_logprobs = _score(logits, sampler, rows, chunk, sequence)
            except ValueError as error:  # logits that are not finite: this request fails, its neighbours do not
                result.error = str(error)
        begin += count


def _score(
    head: Callable[[Tensor], Tensor], sampler: CpuSampler, hidden: Tensor, chunk: Chunk, sequence: Sequence
) -> list[TokenLogprobs]:
    """Logprobs of prompt tokens `start + 1 ..`: the row of a token scores the one after it."""
    targets = sequence.tokens[: sequence.prompt_length][chunk.start + 1 : chunk.start + chunk.length + 1]
    top = sequence.sampling.prompt_logprobs or 0
    scored: list[TokenLogprobs] = []
    for begin in range(0, len(targets), SCORED_ROWS):
        part = targets[begin : begin + SCORED_ROWS]
        logits = head(hidden[begin : begin + len(part)])
        scored += sampler.prompt_logprobs(logits, part, top)
    return scored
