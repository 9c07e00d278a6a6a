"""`allowed_token_ids`: all tokens but these are masked."""

import numpy as np

from engine.sampling.edits import AddingEdit, Additions, known_ids, masked
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams


class AllowedTokens(AddingEdit):
    """Masks every token that a request does not allow. The arrays, 12 bytes for each masked token, are built once per request."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._masks: dict[str, Additions] = {}

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether the request allows only some tokens."""
        return bool(sampling.allowed_token_ids)

    def additions(self, sequence: Sequence, length: int) -> Additions:
        """-inf for all others."""
        found = self._masks.get(sequence.request_id)
        if found is None:
            others = np.ones(self._vocab_size, dtype=np.bool_)
            others[known_ids(sequence.sampling.allowed_token_ids, self._vocab_size)] = False
            found = self._masks[sequence.request_id] = masked(np.flatnonzero(others))
        return found

    def forget(self, request_id: str) -> None:
        """Drop the request's mask."""
        self._masks.pop(request_id, None)
