"""`logit_bias`: a constant added to chosen tokens (OpenAI API reference, "logit_bias")."""

import numpy as np

from engine.sampling.edits import AddingEdit, Additions, known_ids
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams


class LogitBias(AddingEdit):
    """Adds each token's bias to its logit. The arrays are built once per request."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._biases: dict[str, Additions] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request sent a bias."""
        return bool(sampling.logit_bias)

    def additions(self, sequence: Sequence, length: int) -> Additions:
        """The request's biases."""
        found = self._biases.get(sequence.request_id)
        if found is None:
            bias = sequence.sampling.logit_bias
            ids = known_ids(bias, self._vocab_size)
            found = Additions(ids, np.array([bias[int(token)] for token in ids], dtype=np.float32))
            self._biases[sequence.request_id] = found
        return found

    def forget(self, request_id: str) -> None:
        """Drop the request's arrays."""
        self._biases.pop(request_id, None)
