"""The fused norm against its definition."""

import pytest
import torch

from kernels.gpu.norm.rms_norm import WIDEST, last_norm, reference_last_norm, reference_rms_norm, rms_norm

# The interpreter truncates to bf16 where a GPU rounds: one unit in the last place.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 2**-7}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE)


def drawn(seed, *shape, dtype=torch.float32, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[actual.dtype], rtol=TOLERANCE[actual.dtype])


@DTYPES
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("hidden", [1, 15, 64, 80, 511, 512, 513, 576, 1025])
@pytest.mark.parametrize("scale", [1e-2, 30.0])
def test_norm(dtype, rows, hidden, scale):
    x, weight = drawn(hidden, rows, hidden, dtype=dtype, scale=scale), drawn(1, hidden)
    normed, total = rms_norm(x, weight, 1e-5)
    close(normed, reference_rms_norm(x, weight, 1e-5)[0])
    assert total is x


@DTYPES
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("hidden", [1, 15, 64, 511, 512, 513, 576])
def test_norm_of_the_sum(dtype, rows, hidden):
    x, residual = drawn(hidden, rows, hidden, dtype=dtype), drawn(2, rows, hidden, dtype=dtype, scale=9.0)
    before = x.clone(), residual.clone()
    weight = drawn(1, hidden)
    normed, total = rms_norm(x, weight, 1e-5, residual=residual)
    expected = reference_rms_norm(x, weight, 1e-5, residual=residual)
    close(total, expected[1])
    close(normed, reference_rms_norm(total, weight, 1e-5)[0])
    assert torch.equal(normed, rms_norm(total, weight, 1e-5)[0])  # of the sum as it was rounded
    assert torch.equal(x, before[0]) and torch.equal(residual, before[1])


@DTYPES
@pytest.mark.parametrize("hidden", [15, 576])
def test_norm_of_some_rows_of_the_sum(dtype, hidden):
    """The same bits as norm and gather apart; other rows, which are NaN, are not read."""
    x, residual, weight = drawn(7, 6, hidden, dtype=dtype), drawn(8, 6, hidden, dtype=dtype), drawn(1, hidden)
    rows = torch.tensor([4, 0, 4, 2])
    x[[1, 3, 5]] = float("nan")
    for before in (residual, None):
        found = last_norm(x, weight, 1e-5, before, rows)
        close(found, reference_last_norm(x, weight, 1e-5, before, rows))
        assert torch.equal(found, rms_norm(x, weight, 1e-5, residual=before)[0][rows])
    out = torch.empty(4, hidden, dtype=dtype)
    assert last_norm(x, weight, 1e-5, None, rows, out=out) is out and torch.equal(out, found)
    with pytest.raises(ValueError, match="int64"):
        last_norm(x, weight, 1e-5, None, rows.int())


def test_rows_of_a_wider_matrix_and_weights_of_the_models_type():
    """Views with a row stride; what lies beside is NaN and must not be read."""
    wide = torch.full((4, 100), float("nan"), dtype=torch.float16)
    wide[:, :60] = drawn(3, 4, 60)
    weight = drawn(4, 60, dtype=torch.float16)
    normed, total = rms_norm(wide[:, :60], weight, 1e-6, residual=wide[:, :60])
    close(normed, reference_rms_norm(wide[:, :60], weight, 1e-6, residual=wide[:, :60])[0])
    close(total, wide[:, :60] * 2)


def test_a_row_does_not_depend_on_the_others():
    x, weight = drawn(5, 7, 96), drawn(6, 96)
    whole = rms_norm(x, weight, 1e-5)[0]
    assert all(torch.equal(whole[row : row + 1], rms_norm(x[row : row + 1], weight, 1e-5)[0]) for row in range(7))


def test_zeros_and_no_rows():
    weight = torch.ones(8)
    assert torch.equal(rms_norm(torch.zeros(2, 8), weight, 1e-6)[0], torch.zeros(2, 8))
    assert rms_norm(torch.zeros(0, 8), weight, 1e-6, residual=torch.zeros(0, 8))[0].shape == (0, 8)


@pytest.mark.parametrize(
    ("x", "weight", "residual"),
    [
        (torch.zeros(2, 8), torch.zeros(7), None),
        (torch.zeros(8, 2).t(), torch.zeros(8), None),
        (torch.zeros(2, 8), torch.zeros(8), torch.zeros(1, 8)),
        (torch.zeros(2, 8), torch.zeros(8), torch.zeros(2, 8, dtype=torch.float16)),
        (torch.zeros(1, WIDEST + 1), torch.zeros(WIDEST + 1), None),
    ],
)
def test_what_does_not_belong_together_is_refused(x, weight, residual):
    with pytest.raises(ValueError, match=r"must be|at most"):
        rms_norm(x, weight, 1e-6, residual=residual)
