"""`min_tokens`: no EOS and no stop token until the output has that many tokens."""

from collections.abc import Collection

from engine.sampling.edits import NOTHING, AddingEdit, Additions, known_ids, masked
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams


class MinTokens(AddingEdit):
    """Masks EOS and the request's stop tokens while the output is shorter than `min_tokens`.

    It does so with `ignore_eos` as well: that setting says what an EOS *does* (nothing), this one whether it may come.
    """

    def __init__(self, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether a minimum is asked for."""
        return sampling.min_tokens > 0

    def additions(self, sequence: Sequence, length: int) -> Additions:
        """-inf for the tokens that would end it, while the output is too short."""
        if length - sequence.prompt_length >= sequence.sampling.min_tokens:
            return NOTHING
        return masked(known_ids((*self._eos_token_ids, *sequence.sampling.stop_token_ids), self._vocab_size))
