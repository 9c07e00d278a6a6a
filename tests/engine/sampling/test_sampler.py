import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling import sampler as sampler_module
from engine.sampling.sampler import NO_TOKEN, CpuSampler
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import SequenceInit
from tests.drawn import drawn
from tests.engine.samplers import cpu_sampler
from tests.engine.sampling import oracle

VOCAB = 60
EOS = [0, 7]
ROUNDING = 1e-5


def sequence(tokens: list[int], prompt_length: int = 1, name: str = "a", **asked: Any) -> Sequence:
    sampling = SamplingParams(**{"max_tokens": 100, **asked})
    return Sequence(
        request_id=name,
        tokens=tokens,
        prompt_length=prompt_length,
        sampling=sampling,
        announced_length=prompt_length,
    )


def random_settings(rng: np.random.Generator) -> dict[str, Any]:
    def sometimes(value: Any, otherwise: Any) -> Any:
        return value if rng.random() < 0.4 else otherwise

    def ids(count: int) -> list[int]:
        return rng.integers(0, VOCAB, count).tolist()

    return {
        "temperature": sometimes(0.0, float(rng.uniform(0.2, 2.0))),
        "top_k": sometimes(int(rng.integers(1, VOCAB + 20)), 0),
        "top_p": sometimes(float(rng.uniform(0.02, 0.99)), 1.0),
        "min_p": sometimes(float(rng.uniform(0.01, 0.6)), 0.0),
        "presence_penalty": sometimes(float(rng.uniform(-2, 2)), 0.0),
        "frequency_penalty": sometimes(float(rng.uniform(-2, 2)), 0.0),
        "repetition_penalty": sometimes(float(rng.uniform(0.5, 2)), 1.0),
        "logit_bias": sometimes(dict.fromkeys(ids(5), float(rng.uniform(-9, 9))), {}),
        "bad_words": sometimes(tuple(tuple(rng.integers(0, 6, n).tolist()) for n in (1, 2, 2, 2, 3)), ()),
        "min_tokens": sometimes(int(rng.integers(1, 6)), 0),
        "stop_token_ids": sometimes(tuple(ids(2)), ()),
        "ignore_eos": sometimes(True, False),
        "seed": int(rng.integers(-(2**62), 2**62)),
        "logprobs": sometimes(int(rng.integers(0, 6)), None),
    }


def random_sequence(rng: np.random.Generator, name: str) -> Sequence:
    prompt = rng.integers(0, 6, rng.integers(1, 12)).tolist()
    output = rng.integers(0, 6, rng.integers(0, 5)).tolist()
    return sequence(prompt + output, len(prompt), name, **random_settings(rng))


def check_row(row: list[float], seq: Sequence, sampled: sampler_module.Sampled) -> None:
    expected, margin = oracle.next_token(oracle.edited(row, seq, EOS), seq.sampling, len(seq.tokens))
    if expected is None:
        assert sampled.token_id == NO_TOKEN
        assert sampled.error is not None
        return
    assert sampled.error is None
    assert sampled.token_id != NO_TOKEN
    assert margin < ROUNDING or sampled.token_id == expected
    assert (sampled.logprobs is None) == (seq.sampling.logprobs is None)
    if sampled.logprobs is not None:
        check_logprobs(row, sampled.token_id, seq.sampling.logprobs or 0, sampled.logprobs)


def check_logprobs(row: list[float], token: int, top: int, entry: sampler_module.TokenLogprobs) -> None:
    logprob, rank = oracle.logprob_and_rank(row, token)
    assert (entry.token_id, entry.rank) == (token, rank)
    assert entry.logprob == pytest.approx(logprob, abs=1e-5)
    assert len(entry.top) == min(top, len(row))
    assert sorted((row[i] for i, _ in entry.top), reverse=True) == sorted(row, reverse=True)[:top]
    for token_id, value in entry.top:
        assert value == pytest.approx(oracle.logprob_and_rank(row, token_id)[0], abs=1e-5)
    assert [value for _, value in entry.top] == sorted((value for _, value in entry.top), reverse=True)


@settings(max_examples=drawn(150))
@given(st.integers(0, 2**32))
def test_mixed_batches_equal_the_definitions_row_by_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sampler = cpu_sampler(VOCAB, EOS)
    batch = [random_sequence(rng, str(i)) for i in range(rng.integers(1, 12))]
    for _ in range(3):
        logits = torch.from_numpy(rng.normal(0, 3, (len(batch), VOCAB)).astype(np.float32))
        if rng.random() < 0.5:
            logits = logits.round()  # equal logits
        rows = logits.tolist()
        for row, seq, sampled in zip(rows, batch, sampler.sample(logits, batch), strict=True):
            check_row(row, seq, sampled)
            seq.tokens.append(int(rng.integers(0, 6)))


def test_the_comparison_notices_a_wrong_token() -> None:
    seq = sequence([1, 2], temperature=0.0)
    row = [float(i) for i in range(VOCAB)]
    check_row(row, seq, sampler_module.Sampled(VOCAB - 1))
    with pytest.raises(AssertionError):
        check_row(row, seq, sampler_module.Sampled(3))


def test_same_seed_gives_the_same_token_alone_and_in_any_batch() -> None:
    rng = np.random.default_rng(1)
    vocab = 5000  # several rungs
    logits = torch.from_numpy(rng.normal(0, 2, (24, vocab)).astype(np.float32))
    asked = [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.02}, {"temperature": 0.0}, {"repetition_penalty": 1.3}]
    batch = [sequence([1, 2, 3, i], 2, str(i), seed=i, **asked[i % len(asked)]) for i in range(24)]
    together = cpu_sampler(vocab, EOS).sample(logits.clone(), batch)
    for order in (list(range(24)), rng.permutation(24).tolist()):
        again = cpu_sampler(vocab, EOS).sample(logits[order], [batch[i] for i in order])
        assert [together[i] for i in order] == again
    for i in range(24):
        assert cpu_sampler(vocab, EOS).sample(logits[i : i + 1].clone(), [batch[i]]) == [together[i]]


def test_a_text_is_the_same_after_preemption_and_another_worker() -> None:
    rng = np.random.default_rng(2)
    table = torch.from_numpy(rng.normal(0, 2, (VOCAB, VOCAB)).astype(np.float32))  # next logits from the last token
    asked = {"seed": -5, "frequency_penalty": 0.7, "repetition_penalty": 1.2, "top_p": 0.95, "logprobs": 2}

    def run(seq: Sequence, steps: int, sampler: CpuSampler) -> None:
        for _ in range(steps):
            token = sampler.sample(table[seq.tokens[-1]].unsqueeze(0).clone(), [seq])[0].token_id
            assert token != NO_TOKEN
            seq.tokens.append(token)

    whole = sequence([1, 2, 3], 3, **asked)
    run(whole, 150, cpu_sampler(VOCAB, EOS))
    broken = sequence([1, 2, 3], 3, **asked)
    sampler = cpu_sampler(VOCAB, EOS)
    run(broken, 40, sampler)
    sampler.forget(broken.request_id)  # preempted: counted anew from the tokens
    run(broken, 40, sampler)
    moved = dataclasses.replace(broken, tokens=list(broken.tokens))
    run(moved, 70, cpu_sampler(VOCAB, EOS))
    assert moved.tokens == whole.tokens
    assert len(set(whole.tokens)) > 10


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_fails_alone(bad: float, temperature: float) -> None:
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    batch = [sequence([1], name=str(i), temperature=temperature, seed=i, logprobs=1, top_k=i) for i in range(4)]
    healthy = cpu_sampler(VOCAB, EOS).sample(logits.clone(), batch)
    logits[2, 5] = bad
    sampled = cpu_sampler(VOCAB, EOS).sample(logits, batch)
    assert sampled[2].token_id == NO_TOKEN
    assert sampled[2].logprobs is None
    assert "not finite" in (sampled[2].error or "")
    for row in (0, 1, 3):
        assert sampled[row] == healthy[row]


def test_masking_does_not_hide_a_broken_row() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 3] = float("nan")
    assert "not finite" in (cpu_sampler(VOCAB, EOS).sample(logits, [sequence([1], bad_words=((3,),))])[0].error or "")


def test_a_fully_masked_row_fails_alone() -> None:
    everything = tuple((token,) for token in range(VOCAB))
    batch = [sequence([1], name="a"), sequence([1], name="b", bad_words=everything), sequence([1], name="c", top_k=2)]
    sampled = cpu_sampler(VOCAB, EOS).sample(torch.zeros(3, VOCAB), batch)
    assert "mask the whole vocabulary" in (sampled[1].error or "")
    assert [s.error for s in (sampled[0], sampled[2])] == [None, None]


@pytest.mark.parametrize("asked", [{}, {"top_k": 50}, {"top_p": 0.5}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_the_only_token_left_is_taken(asked: dict[str, Any]) -> None:
    logits = torch.full((1, 3000), float("-inf"))
    logits[0, 2345] = -1e30
    assert cpu_sampler(3000, EOS).sample(logits, [sequence([1], **asked)])[0].token_id == 2345


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-6, 1e30])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 3.5, -80.0, float("-inf")]])
    for asked in ({}, {"top_p": 0.9}, {"min_p": 0.2}, {"top_k": 3}):
        for seed in range(20):
            token = cpu_sampler(5, []).sample(
                logits.clone(), [sequence([1], temperature=temperature, seed=seed, **asked)]
            )
            assert token[0].token_id in ({2} if temperature < 1 else {0, 1, 2, 3})


def test_greedy_rows_leave_the_logits_untouched_and_equal_argmax() -> None:
    logits = torch.randn(16, 1000, generator=torch.Generator().manual_seed(3))
    kept = logits.clone()
    batch = [sequence([1], name=str(i), temperature=0.0, top_k=5, top_p=0.2) for i in range(16)]
    sampled = cpu_sampler(1000, EOS).sample(logits, batch)
    assert [s.token_id for s in sampled] == kept.argmax(dim=-1).tolist()
    assert torch.equal(logits, kept)


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = torch.zeros(1, VOCAB)
    raw = logits.tolist()[0]
    seq = sequence([1], temperature=0.5, logit_bias={9: 50.0}, logprobs=3)
    sampled = cpu_sampler(VOCAB, EOS).sample(logits, [seq])[0]
    assert sampled.token_id == 9
    assert sampled.logprobs is not None
    check_logprobs(raw, 9, 3, sampled.logprobs)


def test_prompt_logprobs_over_several_blocks_of_rows() -> None:
    rng = np.random.default_rng(4)
    logits = torch.from_numpy(rng.normal(0, 3, (150, VOCAB)).astype(np.float32))
    targets = rng.integers(0, VOCAB, 150).tolist()
    entries = cpu_sampler(VOCAB, EOS).prompt_logprobs(logits, targets, 4)
    for row, target, entry in zip(logits.tolist(), targets, entries, strict=True):
        check_logprobs(row, target, 4, entry)


def test_prompt_logprobs_of_broken_rows_are_refused() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[1, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        cpu_sampler(VOCAB, EOS).prompt_logprobs(logits, [1, 2], 1)


def test_nothing_to_sample_is_nothing_sampled() -> None:
    assert cpu_sampler(VOCAB, EOS).sample(torch.zeros(0, VOCAB), []) == []
    assert cpu_sampler(VOCAB, EOS).prompt_logprobs(torch.zeros(0, VOCAB), [], 3) == []


@pytest.mark.parametrize("logits", [torch.zeros(2, VOCAB), torch.zeros(1, VOCAB - 1), torch.zeros(1, VOCAB).half()])
def test_misuse_says_what_is_expected(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected torch.float32 \[1, 60\]"):
        cpu_sampler(VOCAB, EOS).sample(logits, [sequence([1])])


def test_a_sequence_copies_the_announced_prompt() -> None:
    init = SequenceInit(request_id="a", prompt_ids=[4, 5], sampling=SamplingParams(max_tokens=1))
    seq = Sequence.from_init(init)
    seq.tokens.append(6)
    assert (init.prompt_ids, seq.prompt_length, seq.tokens) == ([4, 5], 2, [4, 5, 6])
