from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sampling.top_k_top_p import Limits, candidates, rungs
from scheduler.types.sampling_params import SamplingParams
from tests.drawn import drawn
from tests.engine.sampling import oracle

ROUNDING = 2e-7  # fp32 weights, summed in fp64


def kept_ids(logits: torch.Tensor, asked: list[SamplingParams], first_rung: int) -> list[dict[int, float]]:
    """Candidates with their probabilities, by row; checks that each row comes once, its ids ascending."""
    limits = Limits.of(asked, logits.shape[1], logits.device)
    found: dict[int, dict[int, float]] = {}
    for rows, (weights, ids) in candidates(logits, logits.amax(dim=-1), limits, first_rung):
        assert (ids.diff(dim=-1) > 0).all()
        for row, row_weights, row_ids in zip(rows.tolist(), weights, ids, strict=True):
            assert row not in found
            inside = row_weights > 0
            shares = (row_weights / row_weights.sum())[inside].tolist()
            found[row] = dict(zip(row_ids[inside].tolist(), shares, strict=True))
    return [found[row] for row in range(len(logits))]


def check(logits: torch.Tensor, asked: list[SamplingParams], first_rung: int) -> int:
    compared = 0
    for row, sampling, kept in zip(logits.tolist(), asked, kept_ids(logits, asked, first_rung), strict=True):
        truth = oracle.distribution(row, sampling)
        if truth.margin > ROUNDING:
            expected = {token: p for token, p in enumerate(truth.probabilities) if p > 0}
            assert kept == pytest.approx(expected, abs=1e-5)
            compared += 1
    return compared


def random_limits(rng: np.random.Generator, vocab: int) -> SamplingParams:
    asked: dict[str, Any] = {"temperature": float(rng.uniform(0.3, 2))}
    while len(asked) == 1:  # at least one limit: rows without take another path
        if rng.random() < 0.4:
            asked["top_k"] = int(rng.integers(1, vocab + 9))
        if rng.random() < 0.4:
            asked["top_p"] = float(rng.uniform(0.01, 0.999))
        if rng.random() < 0.4:
            asked["min_p"] = float(rng.uniform(0.001, 0.9))
    return SamplingParams(max_tokens=1, **asked)


@settings(max_examples=drawn(200))
@given(st.integers(0, 2**32), st.integers(2, 150), st.integers(1, 20), st.sampled_from(["plain", "ties", "masked"]))
def test_candidates_equal_the_definition_on_every_rung(seed: int, vocab: int, first_rung: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 2, (6, vocab)).astype(np.float32)
    if kind == "ties":
        values = values.round()
    if kind == "masked":
        values[:, 1:][rng.random((6, vocab - 1)) < 0.8] = -np.inf
    check(torch.from_numpy(values), [random_limits(rng, vocab) for _ in range(6)], first_rung)


@pytest.mark.parametrize(
    "asked",
    [
        {"top_k": 1}, {"top_k": 255}, {"top_k": 256}, {"top_k": 3000}, {"top_k": 5000}, {"top_p": 0.3}, {"top_p": 0.99},
        {"min_p": 0.3}, {"min_p": 1e-5}, {"top_k": 2500, "top_p": 0.5}, {"min_p": 1e-4, "top_p": 0.9},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_large_vocabulary_climbs_the_default_rungs(asked: dict[str, Any], scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(0, scale, (3, 6000)).astype(np.float32))
    assert check(logits, [SamplingParams(max_tokens=1, **asked)] * 3, 256) > 0


def test_equal_logits_go_by_id_and_exactly_k_stay() -> None:
    logits = torch.zeros(2, 900)
    logits[1, 400] = 1.0
    few, one = kept_ids(logits, [SamplingParams(max_tokens=1, top_k=5)] * 2, 2)
    assert list(few) == [0, 1, 2, 3, 4]
    assert list(one) == [0, 1, 2, 3, 400]


def test_min_p_of_one_keeps_the_likeliest_and_its_equals() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 4.0]])
    assert list(kept_ids(logits, [SamplingParams(max_tokens=1, min_p=1.0)], 1)[0]) == [1, 3]


def test_a_tiny_top_p_keeps_one() -> None:
    logits = torch.randn(4, 700, generator=torch.Generator().manual_seed(0))
    kept = kept_ids(logits, [SamplingParams(max_tokens=1, top_p=1e-9)] * 4, 8)
    assert [list(row) for row in kept] == [[token] for token in logits.argmax(dim=-1).tolist()]


def test_min_p_looks_at_the_scaled_distribution() -> None:
    logits = torch.tensor([[0.0, -2.0, -5.0]])
    hot = SamplingParams(max_tokens=1, temperature=4.0, min_p=0.5)  # e^-0.5 = 0.61 stays; unscaled e^-2 would not
    assert list(kept_ids(logits, [hot], 1)[0]) == [0, 1]


@pytest.mark.parametrize(
    ("vocab", "expected"), [(300, [300]), (49_152, [256, 2048, 16_384, 49_152]), (512, [256, 512])]
)
def test_rungs_end_with_the_vocabulary(vocab: int, expected: list[int]) -> None:
    assert rungs(vocab) == expected
