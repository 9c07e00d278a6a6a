"""`logit_bias`: a constant added to chosen tokens (OpenAI API reference, "logit_bias")."""

import numpy as np
import torch
from torch import Tensor

from engine.sampling.edits import IdArray, ValueArray, coordinates, known_ids
from engine.sequence import Sequence


class LogitBias:
    """Adds each token's bias to its logit. The arrays are built once per request."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._arrays: dict[str, tuple[IdArray, ValueArray]] = {}

    def wants(self, sequence: Sequence) -> bool:
        """Whether the request sent a bias."""
        return bool(sequence.sampling.logit_bias)

    def apply(self, logits: Tensor, rows: list[int], sequences: list[Sequence]) -> None:
        """Add the biases to `logits` [rows, vocabulary] in place."""
        arrays = [self._bias_of(sequence) for sequence in sequences]
        where = coordinates(rows, [ids for ids, _ in arrays], logits.device)
        values = torch.from_numpy(np.concatenate([values for _, values in arrays])).to(logits.device)
        logits.index_put_(where, values, accumulate=True)

    def forget(self, request_id: str) -> None:
        """Drop the request's arrays."""
        self._arrays.pop(request_id, None)

    def _bias_of(self, sequence: Sequence) -> tuple[IdArray, ValueArray]:
        arrays = self._arrays.get(sequence.request_id)
        if arrays is None:
            bias = sequence.sampling.logit_bias
            ids = known_ids(bias, self._vocab_size)
            arrays = ids, np.array([bias[int(token)] for token in ids], dtype=np.float32)
            self._arrays[sequence.request_id] = arrays
        return arrays
