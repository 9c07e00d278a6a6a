"""Runs steps on one device: sequences in, sampled tokens out.

What belongs here: the order of a step (tokens, forward, head, sample). Never: policy, which requests run, text, sockets.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.cpu.batch import SequenceInput
from engine.cpu.model import Model
from engine.sampling.prompt_logprobs import score_prompts, wanted
from engine.sampling.sampler import CpuSampler
from engine.sequence import Sequence
from scheduler.types.step import Chunk, ChunkResult, SequenceInit, Step, StepResult


@dataclass(frozen=True, slots=True)
class Computed:
    """A step that was computed while it was handed over."""

    brought: StepResult

    def result(self) -> StepResult:
        """See `Pending`."""
        return self.brought


class CpuWorker:
    """The CPU device."""

    depth = 1  # the CPU that would plan ahead is the device itself

    def __init__(self, model: Model, sampler: CpuSampler) -> None:
        self._model = model
        self._sampler = sampler
        self._sequences: dict[str, Sequence] = {}

    @property
    def blocks(self) -> torch.Tensor:
        """See `Worker`."""
        storage = self._model.pool.storage
        return storage.view(len(storage), -1).view(torch.uint8)

    def submit(self, step: Step) -> Computed:
        """See `Worker`."""
        return Computed(self.run(step))

    def run(self, step: Step) -> StepResult:
        """See `Worker`."""
        began = time.perf_counter()
        self._announce(step.new)
        results = self._compute(step.chunks) if step.chunks else []
        for request_id in step.retired:
            self._sequences.pop(request_id, None)
            self._sampler.forget(request_id)
        return StepResult(step_id=step.step_id, results=results, seconds=time.perf_counter() - began)

    def _announce(self, new: Iterable[SequenceInit]) -> None:
        for init in new:
            self._sequences[init.request_id] = Sequence.from_init(init)

    @torch.inference_mode()
    def _compute(self, chunks: list[Chunk]) -> list[ChunkResult]:
        sequences = [self._sequences[chunk.request_id] for chunk in chunks]
        inputs = [
            SequenceInput(
                token_ids=sequence.tokens[chunk.start : chunk.start + chunk.length],
                start=chunk.start,
                block_table=chunk.block_table,
                wanted=wanted(chunk, sequence),
            )
            for chunk, sequence in zip(chunks, sequences, strict=True)
        ]
        hidden = self._model.forward(inputs)
        results = [ChunkResult(request_id=chunk.request_id) for chunk in chunks]
        score_prompts(hidden, chunks, sequences, results, logits=self._model.logits, sampler=self._sampler)
        self._sample(hidden, chunks, sequences, results)
        return results

    def _sample(
        self, hidden: torch.Tensor, chunks: list[Chunk], sequences: list[Sequence], results: list[ChunkResult]
    ) -> None:
        """Sample after the last row of each chunk that asks for it; the head is computed for those rows only."""
        rows, places, row = [], [], -1
        for place, (chunk, sequence) in enumerate(zip(chunks, sequences, strict=True)):
            row += wanted(chunk, sequence)
            if chunk.samples and results[place].error is None:
                rows.append(row)
                places.append(place)
        if not rows:
            return
        picked = hidden if len(rows) == hidden.shape[0] else hidden[rows]
        sampled = self._sampler.sample(self._model.logits(picked), [sequences[place] for place in places])
        for place, token in zip(places, sampled, strict=True):
            result = results[place]
            if token.error is not None:
                result.error = token.error
                continue
            sequences[place].tokens.append(token.token_id)
            result.token_id, result.logprobs = token.token_id, token.logprobs
