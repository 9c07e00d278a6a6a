"""Repetition, presence and frequency penalties, on the tokens that a sequence holds and on no others.

Definitions, with l the logit of a token and n the number of times it is in the output: repetition (Keskar et al. 2019,
"CTRL", section 4.1; as in transformers' `RepetitionPenaltyLogitsProcessor`), for tokens of the prompt and the output:
l / r where l > 0, else l * r. Then presence and frequency (OpenAI API reference, "Frequency and presence penalties"),
for tokens of the output: l - frequency * n - presence * [n > 0].
"""

import numpy as np
import torch
from torch import Tensor

from engine.sampling.edits import IdArray, ValueArray, coordinates
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams


class _TokenCounts:
    """The distinct tokens of one sequence and how often each is in its output; kept up to date with what is appended."""

    def __init__(self, sequence: Sequence) -> None:
        self._tokens = sequence.tokens
        self._counted = sequence.prompt_length  # tokens before this index are in the arrays
        prompt = np.unique(np.asarray(sequence.tokens[: sequence.prompt_length], dtype=np.int64))
        self._size = len(prompt)
        self._slot = {token: slot for slot, token in enumerate(prompt.tolist())}
        self._ids: IdArray = np.zeros(self._size + 64, dtype=np.int64)
        self._ids[: self._size] = prompt
        self._output: ValueArray = np.zeros(self._size + 64, dtype=np.float32)

    def describes(self, sequence: Sequence) -> bool:
        """False if the id now names another list of tokens, or one shorter than what was counted: then count afresh."""
        return self._tokens is sequence.tokens and self._counted <= len(sequence.tokens)

    def catch_up(self) -> tuple[IdArray, ValueArray]:
        """(distinct ids, how often each is in the output): views, valid until the next call."""
        for token in self._tokens[self._counted :]:
            slot = self._slot_of(token)  # first: it may replace the arrays
            self._output[slot] += 1
        self._counted = len(self._tokens)
        return self._ids[: self._size], self._output[: self._size]

    def _slot_of(self, token: int) -> int:
        slot = self._slot.setdefault(token, self._size)
        if slot == self._size:
            if slot == len(self._ids):  # doubling keeps the cost of an append constant on average
                self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
                self._output = np.concatenate([self._output, np.zeros_like(self._output)])
            self._ids[slot] = token
            self._size += 1
        return slot


class Penalties:
    """Applies the three penalties in one gather and one scatter over the rows that have any.

    On a device the sampling kernel reads logits through them (`kernels.gpu.sampling.penalties`).
    """

    in_kernel: bool = True

    def __init__(self) -> None:
        self._counts: dict[str, _TokenCounts] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether any penalty is on."""
        return (
            sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        )

    def apply(self, logits: Tensor, rows: list[int], sequences: list[Sequence]) -> None:
        """Penalize rows of `logits` [all rows, vocabulary] fp32 in place."""
        counts = [self._counts_of(sequence).catch_up() for sequence in sequences]
        ids = [array for array, _ in counts]
        output = torch.from_numpy(np.concatenate([array for _, array in counts])).to(logits.device)
        where = coordinates(rows, ids, logits.device)
        settings = np.array(
            [
                (s.sampling.repetition_penalty, s.sampling.presence_penalty, s.sampling.frequency_penalty)
                for s in sequences
            ],
            dtype=np.float32,
        )
        each = np.repeat(settings, [len(array) for array in ids], axis=0)
        repetition, presence, frequency = torch.from_numpy(each).to(logits.device).unbind(1)
        values = logits[where]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[where] = values - frequency * output - presence * (output > 0)

    def forget(self, request_id: str) -> None:
        """Drop the request's counts."""
        self._counts.pop(request_id, None)

    def _counts_of(self, sequence: Sequence) -> _TokenCounts:
        counts = self._counts.get(sequence.request_id)
        if counts is None or not counts.describes(sequence):
            counts = self._counts[sequence.request_id] = _TokenCounts(sequence)
        return counts
