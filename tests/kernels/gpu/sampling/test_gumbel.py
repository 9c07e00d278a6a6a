"""Counter-based Gumbel noise: the words against published ones, their distribution, and what they depend on."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from scipy import stats

from kernels.gpu.sampling.gumbel import (
    gumbel,
    reference_gumbel,
    reference_words,
    tile_gumbel,
)


@triton.jit
def _store_both(tile_out, any_out, seed, position, start, BLOCK: tl.constexpr):
    place = tl.arange(0, BLOCK)
    tl.store(tile_out + place, tile_gumbel(tl.load(seed), position, start, BLOCK))
    tl.store(any_out + place, gumbel(tl.load(seed), position, start + place))


def test_published_words():
    """Known answers of Philox 4x32-7, from the authors' own Random123 (`kat_vectors`)."""
    zeros = torch.zeros(1, 4, dtype=torch.int64)
    assert reference_words(0, zeros).tolist() == [[0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]]
    ones = torch.full((1, 4), 0xFFFFFFFF)
    assert reference_words(-1, ones).tolist() == [[0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]]


@pytest.mark.parametrize(
    ("seed", "position", "start"), [(0, 0, 0), (7, 3, 4096), (-(2**63), 131071, 128), (2**63 - 1, 1, 8)]
)
def test_kernel_numbers(seed, position, start):
    tile, each = torch.full((2, 256), float("nan"))
    _store_both[(1,)](tile, each, torch.tensor([seed]), position, start, BLOCK=256)
    expected = reference_gumbel(seed, position, start + 256)[start:].float()
    assert torch.equal(tile, each)
    torch.testing.assert_close(tile, expected, atol=2e-6, rtol=2e-6)


def test_the_largest_noise_keeps_its_digits():
    """The largest noise decides the winner of a large vocabulary: it must not be rounded to few values."""
    tile, each = torch.empty(2, 8192)
    largest = []
    for position in range(30):
        _store_both[(1,)](tile, each, torch.tensor([11]), position, 0, BLOCK=8192)
        expected = reference_gumbel(11, position, 8192)
        where = expected.argmax()
        assert float(tile[where]) == pytest.approx(float(expected[where]), rel=1e-6)
        largest.append(float(tile[where]))
    assert len(set(largest)) == 30


def test_the_noise_is_gumbel():
    numbers = torch.cat([reference_gumbel(seed, position, 997) for seed in (0, 5) for position in range(50)])
    assert bool(numbers.isfinite().all())
    assert stats.kstest(numbers.numpy(), "gumbel_r").pvalue > 1e-3


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (2**32, 0), (-1, 0)])
def test_neighbours_are_strangers(other):
    """Seeds and positions beside each other, and seeds that differ in the upper half only."""
    a, b = reference_gumbel(0, 0, 40_000), reference_gumbel(*other, 40_000)
    cells, _, _ = np.histogram2d(
        (-(-a).exp()).exp().numpy(), (-(-b).exp()).exp().numpy(), bins=8, range=[[0, 1], [0, 1]]
    )
    assert stats.chisquare(cells.ravel()).pvalue > 1e-4
