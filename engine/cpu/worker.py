"""Runs steps on one device: sequences in, sampled tokens out.

What belongs here: the order of a step (tokens, forward, head, sample). Never: policy, which requests run, text, sockets.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.cpu.batch import SequenceInput
from engine.cpu.memory_plan import SCORED_ROWS
from engine.cpu.model import Model
from engine.sampling.sampler import Sampler
from engine.sequence import Sequence
from scheduler.types.step import Chunk, ChunkResult, SequenceInit, Step, StepResult, TokenLogprobs


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

    def __init__(self, model: Model, sampler: Sampler) -> None:
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
        score_prompts(hidden, chunks, sequences, results, model=self._model, sampler=self._sampler)
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


def score_prompts(
    hidden: torch.Tensor,
    chunks: list[Chunk],
    sequences: list[Sequence],
    results: list[ChunkResult],
    *,
    model: Model,
    sampler: Sampler,
) -> None:
    """Fill in logprobs of prompt tokens where they are asked for. `hidden` are the rows `wanted` of each chunk."""
    begin = 0
    for chunk, sequence, result in zip(chunks, sequences, results, strict=True):
        if sequence.sampling.prompt_logprobs is not None:
            try:
                rows = hidden[begin : begin + chunk.length]
                result.prompt_logprobs = _score(model, sampler, rows, chunk, sequence)
            except ValueError as error:  # logits that are not finite: this request fails, its neighbours do not
                result.error = str(error)
        begin += wanted(chunk, sequence)


def _score(
    model: Model, sampler: Sampler, hidden: torch.Tensor, chunk: Chunk, sequence: Sequence
) -> list[TokenLogprobs]:
    """Logprobs of prompt tokens `start + 1 ..`: the row of a token scores the one after it."""
    targets = sequence.tokens[: sequence.prompt_length][chunk.start + 1 : chunk.start + chunk.length + 1]
    top = sequence.sampling.prompt_logprobs or 0
    scored: list[TokenLogprobs] = []
    for begin in range(0, len(targets), SCORED_ROWS):
        part = targets[begin : begin + SCORED_ROWS]
        logits = model.logits(hidden[begin : begin + len(part)])
        scored += sampler.prompt_logprobs(logits, part, top)
    return scored


def wanted(chunk: Chunk, sequence: Sequence) -> int:
    """Rows of a chunk whose results are needed."""
    if sequence.sampling.prompt_logprobs is not None:
        return chunk.length
    return 1 if chunk.samples else 0
