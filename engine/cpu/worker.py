"""Runs steps on one device: sequences in, sampled tokens out.

What belongs here: the order of a step (tokens, forward, head, sample). Never: policy, which requests run, text, sockets.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from engine.cpu.model import Model
from engine.memory import SCORED_ROWS
from engine.pooling.pooler import Pooler, by_kind, deliver, pool_rows
from engine.sampling.prompt_logprobs import score_prompts
from engine.sampling.sampled_rows import SampledRow, first_rows, take, wanted_rows
from engine.sampling.sampler import CpuSampler
from engine.sequence import Sequence
from engine.sequence_input import SequenceInput, adapter_rows
from scheduler.types.step import Chunk, ChunkResult, SequenceInit, Step, StepResult


@dataclass(frozen=True, slots=True)
class Computed:
    """A step that was computed when it was submitted."""

    brought: StepResult

    def result(self) -> StepResult:
        """What the step brought."""
        return self.brought


class CpuWorker:
    """The CPU device.

    Args:
        model: with its pool.
        sampler: draws the tokens.
        adapters: names of the model's LoRA adapters; rows refer to them by their place, from 1.
        poolers: make what is not tokens.
    """

    depth = 1  # the CPU that would plan ahead is the device itself

    def __init__(
        self, model: Model, sampler: CpuSampler, adapters: Iterable[str] = (), poolers: Iterable[Pooler] = ()
    ) -> None:
        self._model = model
        self._sampler = sampler
        self._adapters = adapter_rows(adapters)
        self._poolers = by_kind(poolers)
        self._sequences: dict[str, Sequence] = {}

    @property
    def blocks(self) -> torch.Tensor:
        """The KV blocks as bytes."""
        storage = self._model.pool.storage
        return storage.view(len(storage), -1).view(torch.uint8)

    def submit(self, step: Step) -> Computed:
        """Compute the step at once."""
        return Computed(self.run(step))

    def run(self, step: Step) -> StepResult:
        """Announce, compute, sample, and drop what has ended."""
        began = time.perf_counter()
        self._announce(step.new)
        results = self._compute(step.chunks) if step.chunks else []
        for request_id in step.retired:
            self._sequences.pop(request_id, None)
            self._sampler.forget(request_id)
            for pooler in self._poolers.values():
                pooler.forget(request_id)
        return StepResult(step_id=step.step_id, results=results, seconds=time.perf_counter() - began)

    def _announce(self, new: Iterable[SequenceInit]) -> None:
        for init in new:
            self._sequences[init.request_id] = Sequence.from_init(init)

    def _copy(self, chunks: Iterable[Chunk]) -> None:
        """Give forks blocks of their own."""
        forks = [chunk for chunk in chunks if chunk.copy_from is not None]
        if forks:
            storage, size = self._model.pool.storage, self._model.pool.block_size
            targets = [chunk.block_table[chunk.start // size] for chunk in forks]
            storage[targets] = storage[[chunk.copy_from for chunk in forks]]

    @torch.inference_mode()
    def _compute(self, chunks: list[Chunk]) -> list[ChunkResult]:
        sequences = [self._sequences[chunk.request_id] for chunk in chunks]
        wanted = [
            wanted_rows(chunk, sequence, self._poolers) for chunk, sequence in zip(chunks, sequences, strict=True)
        ]
        inputs = [
            SequenceInput(
                token_ids=sequence.tokens[chunk.start : chunk.start + chunk.length] + chunk.draft_ids,
                start=chunk.start,
                block_table=chunk.block_table,
                wanted=rows,
                adapter=self._adapters[sequence.adapter],
            )
            for chunk, sequence, rows in zip(chunks, sequences, wanted, strict=True)
        ]
        self._copy(chunks)
        hidden = self._model.forward(inputs)
        results = [ChunkResult(request_id=chunk.request_id) for chunk in chunks]
        score_prompts(hidden, chunks, sequences, wanted, results, logits=self._model.logits, sampler=self._sampler)
        for place, values in pool_rows(hidden, chunks, sequences, wanted, self._poolers):
            deliver(values.tolist(), sequences[place].produces, results[place])
        self._sample(hidden, first_rows(chunks, wanted, results), sequences, results)
        return results

    def _sample(
        self, hidden: torch.Tensor, rows: list[SampledRow], sequences: list[Sequence], results: list[ChunkResult]
    ) -> None:
        """Sample after these rows, and after those behind them while drafts hold.

        The head is computed for several rows of a sequence at once, as many as there is memory for: who guesses has weighed what a
        row costs. What must follow needs no head.
        """
        rows = self._take_certain(rows, sequences, results)
        while rows:
            ahead = max(0, SCORED_ROWS // len(rows) - 1)
            wanted = [index + i for _, index, drafts in rows for i in range(1 + min(len(drafts), ahead))]
            logits = self._model.logits(hidden if len(wanted) == len(hidden) else hidden[wanted])
            rows = self._sample_scored(logits, wanted, rows, sequences, results)

    def _sample_scored(
        self,
        logits: torch.Tensor,
        wanted: list[int],
        rows: list[SampledRow],
        sequences: list[Sequence],
        results: list[ChunkResult],
    ) -> list[SampledRow]:
        """Sample as far as there are logits: of the rows `wanted`, in their order. Returns the rows to go on after."""
        place_of = {index: place for place, index in enumerate(wanted)}
        left: list[SampledRow] = []
        while rows:
            scores = _rows(logits, [place_of[index] for _, index, _ in rows])
            sampled = self._sampler.sample(scores, [sequences[place] for place, _, _ in rows])
            taken = [
                take(row, token, sequences[row[0]], results[row[0]], self._sampler.complete)
                for row, token in zip(rows, sampled, strict=True)
            ]
            following = self._take_certain([row for row in taken if row is not None], sequences, results)
            left += [row for row in following if row[1] not in place_of]
            rows = [row for row in following if row[1] in place_of]
        return left

    def _take_certain(
        self, rows: list[SampledRow], sequences: list[Sequence], results: list[ChunkResult]
    ) -> list[SampledRow]:
        """Take what must follow without asking the model. Returns the rows that it has to be asked after."""
        left = []
        for row in rows:
            place = row[0]
            following: SampledRow | None = row
            while following is not None and (token := self._sampler.certain(sequences[place])) is not None:
                following = take(following, token, sequences[place], results[place], self._sampler.complete)
            if following is not None:
                left.append(following)
        return left


def _rows(logits: torch.Tensor, places: list[int]) -> torch.Tensor:
    """Rows of `logits`, each of which is used once; a view where they are all or stand in a row."""
    if places[-1] - places[0] + 1 == len(places):
        return logits[places[0] : places[-1] + 1]
    return logits[places]
