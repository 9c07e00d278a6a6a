from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NoBadWordsLogitsProcessor, RepetitionPenaltyLogitsProcessor

from engine.sampling.allowed_tokens import AllowedTokens
from engine.sampling.bad_words import BadWords
from engine.sampling.bias import LogitBias
from engine.sampling.edits import AddingEdit, Edit
from engine.sampling.min_tokens import MinTokens
from engine.sampling.penalties import Penalties
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from engine.sequence import Sequence
from kernels.gpu.sampling.penalties import reference_count_tokens, reference_penalized
from scheduler.types.sampling_params import SamplingParams
from tests.drawn import drawn
from tests.engine.sampling import oracle

VOCAB = 40
EOS = [3, 9]


def sequence(tokens: list[int], prompt_length: int, name: str = "a", **asked: Any) -> Sequence:
    return Sequence(
        request_id=name,
        tokens=tokens,
        prompt_length=prompt_length,
        announced_length=prompt_length,
        sampling=SamplingParams(**{"max_tokens": 100, **asked}),
    )


def on_device(edit: Edit, seq: Sequence, row: torch.Tensor) -> torch.Tensor:
    """The device's form: counts and settings for the kernel, or what is added, with no more tokens than the contract gives it."""
    asked = seq.sampling
    if edit.in_kernel:
        counts = torch.zeros(1, VOCAB, dtype=torch.int32)
        prompt, output = torch.tensor(seq.tokens[: seq.prompt_length]), torch.tensor(seq.tokens[seq.prompt_length :])
        for tokens, out in ((prompt, False), (output, True)):
            reference_count_tokens(counts, torch.zeros_like(tokens), tokens, output=out)
        return reference_penalized(
            row, counts[0], asked.repetition_penalty, asked.presence_penalty, asked.frequency_penalty
        )
    assert isinstance(edit, AddingEdit)
    known = seq if edit.needs_host_tokens else replace(seq, tokens=seq.tokens[: seq.prompt_length])
    ids, values = edit.additions(known, len(seq.tokens))
    return row.index_put((torch.from_numpy(ids),), torch.from_numpy(values), accumulate=True)


def check(edit: Edit, batch: list[Sequence], logits: torch.Tensor) -> None:
    """Rows that the edit concerns become what the oracle says, in both forms; the others do not change."""
    rows = [i for i, seq in enumerate(batch) if edit.concerns(seq.sampling)]
    after = logits.clone()
    if rows:
        edit.apply(after, rows, [batch[i] for i in rows])
    for i, seq in enumerate(batch):
        expected = oracle.edited(logits[i].tolist(), seq, EOS)
        np.testing.assert_allclose(after[i].numpy(), np.array(expected), rtol=1e-5, atol=1e-5)
        if i in rows:
            device = on_device(edit, seq, logits[i])
            np.testing.assert_allclose(device.numpy(), np.array(expected), rtol=1e-5, atol=1e-5)
        assert i in rows or torch.equal(after[i], logits[i])


def some_bias(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "logit_bias": dict(zip(rng.permutation(VOCAB)[:6].tolist(), rng.uniform(-100, 100, 6).tolist(), strict=True))
    }


def some_allowed(rng: np.random.Generator) -> dict[str, Any]:
    return {"allowed_token_ids": (*rng.permutation(VOCAB)[: rng.integers(1, VOCAB)].tolist(), VOCAB + 3)}


def some_words(rng: np.random.Generator) -> dict[str, Any]:
    return {"bad_words": tuple(tuple(rng.integers(0, 4, length).tolist()) for length in (1, 2, 2, 3, 3, 4))}


def some_minimum(rng: np.random.Generator) -> dict[str, Any]:
    return {"min_tokens": int(rng.integers(0, 9)), "stop_token_ids": (1, 2), "ignore_eos": bool(rng.random() < 0.5)}


def some_penalties(rng: np.random.Generator) -> dict[str, Any]:
    penalties = {name: float(rng.uniform(-2, 2)) for name in ("presence_penalty", "frequency_penalty")}
    return {"repetition_penalty": float(rng.uniform(0.3, 3)), **penalties}


EDITS: dict[str, tuple[Callable[[], Edit], Callable[[np.random.Generator], dict[str, Any]]]] = {
    "bias": (lambda: LogitBias(VOCAB), some_bias),
    "allowed": (lambda: AllowedTokens(VOCAB), some_allowed),
    "bad words": (lambda: BadWords(VOCAB), some_words),
    "min tokens": (lambda: MinTokens(VOCAB, EOS), some_minimum),
    "penalties": (Penalties, some_penalties),
}


@pytest.mark.parametrize("name", EDITS)
@settings(max_examples=drawn(60))
@given(seed=st.integers(0, 2**32))
def test_each_edit_equals_its_definition(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    build, asked = EDITS[name]
    edit = build()
    batch = []
    for i in range(5):
        prompt = rng.integers(0, 4, rng.integers(1, 9)).tolist()
        output = rng.integers(0, VOCAB, rng.integers(0, 9)).tolist()
        batch.append(sequence(prompt + output, len(prompt), str(i), **(asked(rng) if rng.random() < 0.7 else {})))
    for _ in range(3):  # state kept from step to step
        check(edit, batch, torch.from_numpy(rng.normal(0, 3, (5, VOCAB)).astype(np.float32)))
        for seq in batch:
            seq.tokens.append(int(rng.integers(0, VOCAB)))
        edit.forget(str(rng.integers(0, 5)))


def test_repetition_penalty_equals_transformers() -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, 5, (4, VOCAB)).astype(np.float32))
    for penalty in (0.7, 1.2, 2.0):
        tokens = rng.integers(0, VOCAB, (4, 25))
        batch = [sequence(row.tolist(), 10, str(i), repetition_penalty=penalty) for i, row in enumerate(tokens)]
        ours = logits.clone()
        Penalties().apply(ours, [0, 1, 2, 3], batch)
        theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.from_numpy(tokens), logits.clone())
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, logits)


def test_bad_words_equal_transformers() -> None:
    rng = np.random.default_rng(1)
    words = [[5], [1, 2], [2, 1], [1, 1, 3], [0, 2, 4]]
    processor = NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([VOCAB - 1]))
    for _ in range(30):
        tokens = rng.integers(0, 3, (1, 6))
        logits = torch.zeros(1, VOCAB)
        BadWords(VOCAB).apply(logits, [0], [sequence(tokens[0].tolist(), 3, bad_words=tuple(map(tuple, words)))])
        assert torch.equal(logits, processor(torch.from_numpy(tokens), torch.zeros(1, VOCAB)))


def test_counts_outgrow_their_first_arrays() -> None:
    vocab = 1000
    edit, seq = Penalties(), sequence([0], 1, frequency_penalty=1.0)
    for token in [*range(1, 600), *range(1, 600, 2)]:
        seq.tokens.append(token)
        logits = torch.zeros(1, vocab)
        edit.apply(logits, [0], [seq])
    expected = [0.0] + [-2.0 if token % 2 else -1.0 for token in range(1, 600)] + [0.0] * 400
    assert logits.tolist() == [expected]


@pytest.mark.parametrize("tokens", [[1, 2], [1, 2, 9, 9, 9, 9, 9, 9], [7]])
def test_a_request_that_comes_back_with_other_tokens_is_counted_anew(tokens: list[int]) -> None:
    edit = Penalties()
    asked = {"presence_penalty": 1.0, "repetition_penalty": 1.5}
    edit.apply(torch.zeros(1, VOCAB), [0], [sequence([1, 2, 3, 4, 5, 5], 2, **asked)])
    check(edit, [sequence(tokens, 1, **asked)], torch.ones(1, VOCAB))


def test_a_list_cut_short_is_counted_anew() -> None:
    edit, seq = Penalties(), sequence([1, 2, 3, 4, 5, 5], 2, frequency_penalty=1.0)
    check(edit, [seq], torch.zeros(1, VOCAB))
    del seq.tokens[3:]
    check(edit, [seq], torch.zeros(1, VOCAB))


def test_a_bad_word_begun_in_the_prompt_counts() -> None:
    logits = torch.zeros(1, VOCAB)
    BadWords(VOCAB).apply(logits, [0], [sequence([4, 5], 2, bad_words=((4, 5, 6), (5, 5, 7), (8, 5)))])
    assert logits.isneginf().nonzero().tolist() == [[0, 6]]


@pytest.mark.parametrize("tokens", [[], [1]])
def test_a_word_longer_than_the_sequence_masks_nothing(tokens: list[int]) -> None:
    logits = torch.zeros(1, VOCAB)
    BadWords(VOCAB).apply(logits, [0], [sequence(tokens, len(tokens), bad_words=((2, 1, 6),))])
    assert not logits.isneginf().any()


def test_ids_beyond_the_vocabulary_change_nothing() -> None:
    seq = sequence([1], 1, logit_bias={VOCAB: 5.0}, bad_words=((VOCAB + 3,),), min_tokens=3, stop_token_ids=(10**9,))
    for edit in (LogitBias(VOCAB), BadWords(VOCAB), MinTokens(VOCAB, [VOCAB])):
        logits = torch.zeros(1, VOCAB)
        edit.apply(logits, [0], [seq])
        assert not logits.any()


def test_min_tokens_ends_with_the_token_that_fulfils_it() -> None:
    edit = MinTokens(VOCAB, EOS)
    assert edit.additions(sequence([1], 1, min_tokens=3), 3).ids.tolist() == EOS
    assert not len(edit.additions(sequence([1], 1, min_tokens=3), 4).ids)


def test_the_order_of_the_list_is_no_order_of_edits() -> None:
    """Edits of the kernel come after all others, as on a device: a bias is penalized, wherever it is in the list."""
    seq = sequence(
        [1, 1, 5], 1, logit_bias={1: 4.0, 5: -2.0}, frequency_penalty=1.0, repetition_penalty=2.0, min_tokens=9
    )
    logits = torch.linspace(-1.0, 1.0, VOCAB).unsqueeze(0)
    expected = oracle.edited(logits[0].tolist(), seq, EOS)
    for edits in permutations(standard_edits(VOCAB, EOS)):
        after = logits.clone()
        CpuSampler(VOCAB, edits).sample(after, [seq])
        np.testing.assert_allclose(after[0].numpy(), np.array(expected), rtol=1e-6)


def test_nothing_is_kept_of_a_request_that_is_forgotten() -> None:
    """A request that comes again under the same id may ask for something else."""
    for name in ("bias", "bad words"):
        build, _ = EDITS[name]
        edit = build()
        first, other = ({"logit_bias": {2: 1.0}, "bad_words": ((2,),)}, {"logit_bias": {4: 1.0}, "bad_words": ((4,),)})
        assert edit.additions(sequence([1], 1, **first), 1).ids.tolist() == [2]
        edit.forget("a")
        edit.forget("never seen")
        assert edit.additions(sequence([1], 1, **other), 1).ids.tolist() == [4]
