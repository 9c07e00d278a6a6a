"""`thinking_token_budget`: what a model thinks before it answers ends after that many tokens, whatever would have come next."""

import numpy as np

from engine.sampling.edits import NOTHING, AddingEdit, Additions, masked
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams

_TAG_AMONG = 4  # tokens of the output: there may be white space before the tag


class ThinkingBudget(AddingEdit):
    """Allows nothing but the closing tag once the budget is used up.

    The budget counts the tokens between the tags. It is looked at at one position, so nothing is kept.
    """

    needs_host_tokens = True

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def concerns(self, sampling: SamplingParams) -> bool:
        """Whether there is a budget."""
        return sampling.thinking_tokens is not None

    def additions(self, sequence: Sequence, length: int) -> Additions:
        """-inf for all other tokens where the budget ends, if the model still thinks there."""
        sampling, begin = sequence.sampling, sequence.prompt_length
        if sampling.think_begin is not None:  # else the prompt ends with it
            first = sequence.tokens[begin : begin + _TAG_AMONG]
            if sampling.think_begin not in first:
                return NOTHING
            begin += first.index(sampling.think_begin) + 1
        if length - begin != sampling.thinking_tokens or sampling.think_end in sequence.tokens[begin:]:
            return NOTHING
        return masked(np.delete(np.arange(self._vocab_size), sampling.think_end))
