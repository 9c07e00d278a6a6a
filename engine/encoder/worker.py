"""Runs an encoder's steps: whole texts in, vectors or scores out."""

import time
from collections.abc import Iterable, Sequence

import torch

from engine.encoder.model import Encoder, EncoderInput
from engine.pooling.pooler import Pooler, by_kind, deliver, pool_rows
from engine.sequence import Sequence as TokenSequence
from scheduler.types.step import Chunk, ChunkResult, Step, StepResult


class EncodedStep:
    """A step that was computed when it was submitted."""

    def __init__(self, brought: StepResult) -> None:
        self._brought = brought

    def result(self) -> StepResult:
        """What the step brought."""
        return self._brought


class EncoderWorker:
    """One device that computes an encoder.

    Args:
        encoder: the model.
        poolers: make what requests ask for.
        blocks: that the scheduler counts with. Nothing is kept in them.
    """

    depth = 1

    def __init__(self, encoder: Encoder, poolers: Iterable[Pooler], blocks: int) -> None:
        self._encoder = encoder
        self._poolers = by_kind(poolers)
        self._sequences: dict[str, TokenSequence] = {}
        self.blocks = torch.zeros((blocks, 1), dtype=torch.uint8)

    def submit(self, step: Step) -> EncodedStep:
        """Compute the step at once."""
        return EncodedStep(self.run(step))

    def run(self, step: Step) -> StepResult:
        """Announce, compute, and drop what has ended."""
        began = time.perf_counter()
        for init in step.new:
            self._sequences[init.request_id] = TokenSequence.from_init(init)
        results = self._compute(step.chunks) if step.chunks else []
        for request_id in step.retired:
            self._sequences.pop(request_id, None)
            for pooler in self._poolers.values():
                pooler.forget(request_id)
        return StepResult(step_id=step.step_id, results=results, seconds=time.perf_counter() - began)

    @torch.inference_mode()
    def _compute(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Each chunk is a whole prompt. They are computed in the order of their lengths, so that equal ones attend together."""
        order = sorted(range(len(chunks)), key=lambda place: chunks[place].length)
        chosen = [chunks[place] for place in order]
        sequences = [self._sequences[chunk.request_id] for chunk in chosen]
        hidden = self._encoder.forward([EncoderInput(each.tokens, each.pair_start) for each in sequences])
        results = [ChunkResult(request_id=chunk.request_id) for chunk in chunks]
        lengths = [chunk.length for chunk in chosen]
        pooled = list(pool_rows(hidden, chosen, sequences, lengths, self._poolers))
        for place, values in zip(
            (place for place, _ in pooled), _on_host([values for _, values in pooled]), strict=True
        ):
            deliver(values, sequences[place].produces, results[order[place]])
        return results


def _on_host(rows: Sequence[torch.Tensor]) -> list[list[float]]:
    """The numbers of each of these vectors, by one copy from the device."""
    return [row.tolist() for row in torch.split(torch.cat(list(rows)).cpu(), [len(row) for row in rows])]
