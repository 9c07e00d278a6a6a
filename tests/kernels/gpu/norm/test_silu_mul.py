"""SwiGLU's product against its definition."""

import pytest
import torch

from kernels.gpu.norm.silu_mul import reference_silu_mul, silu_mul

TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 2**-7}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("inner", [1, 7, 64, 1000, 1024, 1025, 2049])
def test_product(dtype, rows, inner):
    gate_up = (torch.randn(rows, 2 * inner, generator=torch.Generator().manual_seed(inner)) * 4).to(dtype)
    before, tolerance = gate_up.clone(), TOLERANCE[dtype]
    torch.testing.assert_close(silu_mul(gate_up), reference_silu_mul(gate_up), atol=tolerance, rtol=tolerance)
    assert torch.equal(gate_up, before)


def test_gates_that_saturate():
    """exp of 1000 must not overflow on its way to a product of 0 or of the gate itself."""
    gate_up = torch.tensor([[-1000.0, -88.0, -0.0, 0.0, 88.0, 1000.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]])
    out = silu_mul(gate_up)
    torch.testing.assert_close(out, reference_silu_mul(gate_up), atol=1e-30, rtol=1e-6)
    assert out[0, -1] == 2000.0 and out.isfinite().all()


def test_rows_of_a_wider_matrix():
    wide = torch.full((3, 50), float("nan"))
    wide[:, :40] = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(silu_mul(wide[:, :40]), reference_silu_mul(wide[:, :40]))


def test_no_rows():
    assert silu_mul(torch.zeros(0, 8)).shape == (0, 4)


@pytest.mark.parametrize("gate_up", [torch.zeros(2, 7), torch.zeros(4, 2).t()])
def test_columns_that_are_no_pairs_are_refused(gate_up):
    with pytest.raises(ValueError, match="even number of contiguous"):
        silu_mul(gate_up)
