"""A thinking budget: at one position only the closing tag may follow, if the model still thinks there."""

import pytest
import torch

from engine.sampling.thinking import ThinkingBudget
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams

BEGIN, END, VOCAB = 7, 8, 12


def allowed(output, budget, begin):
    """The tokens that may follow this output of a prompt of three."""
    sampling = SamplingParams(max_tokens=20, thinking_tokens=budget, think_begin=begin, think_end=END)
    tokens = [1, 2, BEGIN, *output]
    sequence = Sequence(request_id="r", tokens=tokens, prompt_length=3, sampling=sampling, announced_length=3)
    edit, logits = ThinkingBudget(VOCAB), torch.zeros(2, VOCAB)
    assert edit.concerns(sampling)
    edit.apply(logits, [1], [sequence])
    assert not logits[0].any()
    return [token for token in range(VOCAB) if logits[1, token] == 0]


ANY = list(range(VOCAB))


@pytest.mark.parametrize(
    ("output", "budget", "begin", "expected"),
    [
        ([], 0, None, [END]),
        ([], 2, None, ANY),
        ([1, 2], 2, None, [END]),
        ([1, 2, END], 2, None, ANY),
        ([1, END, 3], 3, None, ANY),
        ([1, 2, END, 3], 3, None, ANY),
        ([], 1, BEGIN, ANY),
        ([BEGIN], 0, BEGIN, [END]),
        ([BEGIN, 1], 1, BEGIN, [END]),
        ([BEGIN, END], 1, BEGIN, ANY),
        ([1, BEGIN], 0, BEGIN, [END]),
        ([1, 2, BEGIN, 1, 3], 2, BEGIN, [END]),
        ([1, 2, BEGIN, 1], 2, BEGIN, ANY),
        ([1, 2], 2, BEGIN, ANY),
        ([1, 2], 1, BEGIN, ANY),
    ],
)
def test_only_the_closing_tag_may_follow_where_the_budget_ends(output, budget, begin, expected):
    assert allowed(output, budget, begin) == expected


def test_without_a_budget_it_concerns_nobody():
    assert not ThinkingBudget(VOCAB).concerns(SamplingParams(max_tokens=1))
