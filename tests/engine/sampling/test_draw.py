"""The drawn distribution against the definition by chi-square, and the check itself against wrong distributions."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from engine.sampling.draw import invert, uniform
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams
from tests.engine.samplers import cpu_sampler
from tests.engine.sampling import oracle

DRAWS = 10_000
SIGNIFICANCE = 1e-4  # the draws are fixed by their seeds: a pass stays a pass


def chi_square(drawn: list[int], probabilities: list[float]) -> float:
    """p-value of the draws; zero where something impossible was drawn. Rare tokens share one bin."""
    counts = Counter(drawn)
    if any(probabilities[token] == 0.0 for token in counts):
        return 0.0
    bins: list[tuple[int, float]] = []
    rare_seen, rare_expected = 0, 0.0
    for token, probability in enumerate(probabilities):
        if probability * len(drawn) >= 5:
            bins.append((counts[token], probability * len(drawn)))
        else:
            rare_seen, rare_expected = rare_seen + counts[token], rare_expected + probability * len(drawn)
    if rare_expected >= 5:
        bins.append((rare_seen, rare_expected))
    seen, expected = np.array(bins).T
    return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue) if len(bins) > 1 else 1.0


def draws(row: list[float], asked: dict[str, Any], *, by_position: bool) -> list[int]:
    """`DRAWS` tokens from one row: each with its own seed, or 200 positions of each seed."""
    sampler, block = cpu_sampler(len(row), []), 1000
    tokens: list[int] = []
    for start in range(0, DRAWS, block):
        batch = [
            Sequence(
                request_id=str(i),
                tokens=[0] * (1 + i % 200 if by_position else 1),
                prompt_length=1,
                announced_length=1,
                sampling=SamplingParams(max_tokens=1, seed=i // 200 if by_position else i, **asked),
            )
            for i in range(start, start + block)
        ]
        logits = torch.tensor([row]).repeat(block, 1)
        tokens += [sampled.token_id for sampled in sampler.sample(logits, batch) if sampled.error is None]
    assert len(tokens) == DRAWS
    return tokens


ROW = np.random.default_rng(0).normal(0, 1.5, 50).astype(np.float32).tolist()
COMBINATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.8},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.08},
    {"top_k": 12, "top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.1, "top_k": 20, "top_p": 0.9},
]


@pytest.mark.parametrize("asked", COMBINATIONS, ids=str)
def test_the_drawn_distribution_is_the_defined_one(asked: dict[str, Any]) -> None:
    truth = oracle.distribution(ROW, SamplingParams(max_tokens=1, **asked))
    assert truth.margin > 1e-5
    assert chi_square(draws(ROW, asked, by_position=False), truth.probabilities) > SIGNIFICANCE


def test_positions_of_a_seed_draw_the_same_distribution() -> None:
    truth = oracle.distribution(ROW, SamplingParams(max_tokens=1))
    assert chi_square(draws(ROW, {}, by_position=True), truth.probabilities) > SIGNIFICANCE


WRONG: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 0.9}),
    ({}, {"top_k": 30}),
    ({"top_k": 7}, {"top_k": 8}),
    ({"top_p": 0.8}, {"top_p": 0.75}),
    ({"min_p": 0.08}, {"min_p": 0.1}),
    ({"top_k": 12, "top_p": 0.7}, {"top_k": 12}),
]


@pytest.mark.parametrize(("defined", "drawn"), WRONG, ids=str)
def test_the_check_notices_a_wrong_distribution(defined: dict[str, Any], drawn: dict[str, Any]) -> None:
    truth = oracle.distribution(ROW, SamplingParams(max_tokens=1, **defined))
    assert chi_square(draws(ROW, drawn, by_position=False), truth.probabilities) < SIGNIFICANCE


def test_positions_are_independent() -> None:
    numbers = np.array([uniform(7, position) for position in range(20_001)])
    cells, _, _ = np.histogram2d(numbers[:-1], numbers[1:], bins=8, range=[[0, 1], [0, 1]])
    assert stats.chisquare(cells.ravel()).pvalue > SIGNIFICANCE
    other = np.array([uniform(8, position) for position in range(20_001)])
    cells, _, _ = np.histogram2d(numbers, other, bins=8, range=[[0, 1], [0, 1]])  # neighbouring seeds
    assert stats.chisquare(cells.ravel()).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    "seed", [0, 1, -1, 2**63, -(2**63), 2**64, 2**64 + 1, -(2**200), 10**6000], ids=lambda seed: f"{seed % 99991}"
)
def test_every_integer_is_a_seed_of_its_own(seed: int) -> None:
    assert 0.0 <= uniform(seed, 3) < 1.0
    assert uniform(seed, 3) == uniform(seed, 3)
    others = [uniform(seed + 1, 3), uniform(-seed - 1, 3), uniform(seed, 4), uniform(seed % 2**64 + 2**65, 3)]
    assert uniform(seed, 3) not in others


def test_the_numbers_stay_what_they_are() -> None:
    """A change here changes the text of every seed: it belongs in the release notes."""
    assert uniform(0, 0) == 0.7087396692063603
    assert uniform(-7, 4096) == 0.23294569540534682


def test_weightless_columns_are_never_drawn() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    weights = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0, tiny, 0.0, 1.0], [0.0, 0.0, tiny, 0.0]])
    for number in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53):
        columns = invert(weights, torch.full((4,), number, dtype=torch.float64)).tolist()
        assert columns == [1, 3, 1 if number == 0.0 else 3, 2]


def test_zeros_between_the_candidates_change_nothing() -> None:
    rng = np.random.default_rng(5)
    weights = torch.from_numpy(rng.exponential(1, (200, 30)).astype(np.float32))
    wide = torch.zeros(200, 3000)
    places = torch.from_numpy(np.sort(rng.permuted(np.tile(np.arange(3000), (200, 1)), axis=1)[:, :30], axis=1))
    wide.scatter_(1, places, weights)
    numbers = torch.from_numpy(rng.uniform(0, 1, 200))
    narrow = places.gather(1, invert(weights, numbers).unsqueeze(1)).squeeze(1)
    assert torch.equal(invert(wide, numbers), narrow)
