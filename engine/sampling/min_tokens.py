"""`min_tokens`: no EOS and no stop token until that many tokens are out."""

import collections.abc

from torch import Tensor

from engine.sampling.edits import known_ids, mask
from engine.sequence import Sequence


class MinTokens:
    """Masks EOS and the request's stop tokens while the output is shorter than `min_tokens`.

    It does so with `ignore_eos` as well: that setting says what an EOS *does* (nothing), this one whether it may come.
    """

    def __init__(self, vocab_size: int, eos_token_ids: collections.abc.Sequence[int]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)

    def wants(self, sequence: Sequence) -> bool:
        """Whether the output is still too short to end."""
        return sequence.output_length < sequence.sampling.min_tokens

    def apply(self, logits: Tensor, rows: list[int], sequences: list[Sequence]) -> None:
        """Mask the ends in `logits` [rows, vocabulary] in place."""
        ends = [(*self._eos_token_ids, *sequence.sampling.stop_token_ids) for sequence in sequences]
        mask(logits, rows, [known_ids(ids, self._vocab_size) for ids in ends])

    def forget(self, request_id: str) -> None:
        """Nothing is kept: the ids are a handful."""
