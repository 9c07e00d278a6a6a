"""Prompts have exactly the tokens asked for, share what the trace shares, and are the same for the same seed."""

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.workload.plan import LoadShape, Planned, make_plan
from loadtest.workload.prompts import Prompts
from loadtest.workload.traces.read import read_trace
from loadtest.workload.vocabulary import PromptTokenizerError, Vocabulary

DATA = Path(__file__).parents[1] / "data"


class Bytes:
    """One token per byte, between special ones: no word is one token."""

    async def ids(self, text):
        return [256, *text.encode(), 257]


class Smollm2:
    """The embedded model's tokenizer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    async def ids(self, text):
        return list(self._tokenizer.encode(text))


class Merging:
    """Joins neighbouring words: lengths of words do not add up."""

    async def ids(self, text):
        return list(range(len(text) // 7))


def measured(tokenizer):
    return asyncio.run(Vocabulary.measured(tokenizer))


def count(tokenizer, text):
    return len(asyncio.run(tokenizer.ids(text)))


def common(a, b):
    return next(
        (place for place, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b))
    )


@pytest.fixture(scope="module", params=["smollm2", "bytes"])
def tokenizer(request):
    return Bytes() if request.param == "bytes" else Smollm2(request.getfixturevalue("smollm2_tokenizer"))


@pytest.fixture(scope="module")
def vocabulary(tokenizer):
    return measured(tokenizer)


@pytest.fixture(scope="module")
def prompts(vocabulary):
    return Prompts(vocabulary, seed=1)


def test_words_have_the_lengths_that_the_tokenizer_gives(tokenizer, vocabulary):
    assert len(vocabulary.words) > 500
    alone = count(tokenizer, "The")
    for word, length in vocabulary.words[::50]:
        assert count(tokenizer, "The" + word) - alone == length


def test_every_length_is_met(tokenizer, vocabulary, prompts):
    for wanted in [*range(vocabulary.base + 2, 130), 1000, 4097]:
        prompt = prompts.prompt(Planned(index=wanted, intended=0, prompt_tokens=wanted, output_tokens=1))
        assert prompt.tokens == wanted == count(tokenizer, prompt.text)


def test_fewer_tokens_than_the_shortest_prompt_are_told(tokenizer, vocabulary, prompts):
    prompt = prompts.prompt(Planned(index=0, intended=0, prompt_tokens=1, output_tokens=1))
    assert prompt.tokens == vocabulary.base == count(tokenizer, prompt.text)


def test_sessions_extend_their_own_history(tokenizer, prompts):
    plans = [
        Planned(index=n, intended=0, prompt_tokens=size, output_tokens=1, session=session)
        for n, (size, session) in enumerate([(100, "a"), (900, "a"), (400, "a"), (900, "b")])
    ]
    first, longer, shorter, other = (prompts.prompt(each) for each in plans)
    assert [count(tokenizer, each.text) for each in (first, longer, shorter, other)] == [100, 900, 400, 900]
    for each in (first, shorter):
        assert common(each.text, longer.text) > 0.85 * len(each.text)
    assert common(other.text, longer.text) < 60


def test_equal_blocks_are_equal_text_and_lengths_hold(tokenizer, vocabulary, prompts):
    requests = make_plan(read_trace(DATA / "mooncake.jsonl"), LoadShape(scale=0.25, max_prompt=2000)).requests
    built = [prompts.prompt(each) for each in requests]
    for planned, prompt in zip(requests, built, strict=True):
        assert prompt.tokens == count(tokenizer, prompt.text)
        # a last block of one token cannot be a word of two
        assert prompt.tokens == planned.prompt_tokens or min(length for _, length in vocabulary.words) > 1
    for (a, left), (b, right) in pairwise(zip(requests, built, strict=True)):
        shared = common(a.blocks, b.blocks) * a.block_tokens
        same = common(left.text, right.text)
        assert count(tokenizer, left.text[:same]) == pytest.approx(shared, abs=12)


def test_other_requests_share_nothing_and_the_seed_decides(vocabulary, prompts):
    one, two = (Planned(index=n, intended=0, prompt_tokens=200, output_tokens=1) for n in range(2))
    assert common(prompts.prompt(one).text, prompts.prompt(two).text) < 30
    assert prompts.prompt(one) == Prompts(vocabulary, seed=1).prompt(one) != Prompts(vocabulary, seed=2).prompt(one)


def test_texts_of_the_trace_are_sent_as_they_are(prompts):
    planned = Planned(index=0, intended=0, prompt_tokens=0, output_tokens=1, prompt="What is a headrace?")
    assert prompts.prompt(planned).text == "What is a headrace?"


def test_estimated_lengths():
    vocabulary = Vocabulary.estimated(4.0)
    prompt = Prompts(vocabulary, seed=0).prompt(Planned(index=0, intended=0, prompt_tokens=1000, output_tokens=1))
    assert not vocabulary.exact
    assert prompt.tokens == 1000
    assert len(prompt.text) == pytest.approx(4000, rel=0.1)


def test_a_tokenizer_whose_words_do_not_add_up_is_refused():
    with pytest.raises(PromptTokenizerError):
        measured(Merging())


def test_of_a_thousand_prompts_that_share_nothing_no_two_begin_alike(tokenizer, vocabulary, prompts):
    """A server keeps blocks of 16 tokens and more: what two prompts begin with must be shorter."""
    texts = sorted(
        prompts.prompt(Planned(index=index, intended=0, prompt_tokens=80, output_tokens=1)).text
        for index in range(1000)
    )
    longest = max(pairwise(texts), key=lambda pair: common(*pair))
    alike = longest[0][: common(*longest)]
    assert count(tokenizer, alike) - vocabulary.base < (12 if vocabulary.base == 1 else 40), alike
