"""8-bit float products: codes bit for bit what torch converts to, the product against its factors in fp64."""

import os
import subprocess
import sys

import pytest
import torch

from kernels.gpu.linear import fp8 as module
from kernels.gpu.linear.fp8 import (
    LARGEST,
    Fp8Matrix,
    fp8_linear,
    quantize_rows,
    reference_fp8_linear,
    reference_quantize_rows,
    refusal,
)


def drawn(rows, columns, dtype=torch.float32, seed=1):
    """Rows of very different size, as a view with NaN beside them."""
    rng = torch.Generator().manual_seed(seed)
    wide = torch.full((rows, columns + 8), float("nan"), dtype=dtype)
    wide[:, :columns] = torch.randn(rows, columns, generator=rng) * torch.logspace(-3, 3, rows)[:, None]
    return wide[:, :columns]


def same_codes(x):
    values, scales = quantize_rows(x)
    expected, their = reference_quantize_rows(x)
    assert torch.equal(scales, their)
    assert torch.equal(values.view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("columns", [1, 16, 500, 4096, 4097, 9000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_codes_are_torchs(columns, dtype):
    same_codes(drawn(4, columns, dtype))


def test_every_code_and_what_lies_half_way_between():
    """The largest value is 448, so that the scale is 1: all codes, ties between neighbours, and their neighbours in fp32."""
    codes = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = (codes[1:] + codes[:-1]) / 2
    near = [torch.nextafter(ties, torch.tensor(end)) for end in (0.0, 1000.0)]
    values = torch.cat([codes, ties, *near, torch.tensor([0.0, 1e-8, 2**-10, 2**-11, LARGEST])])
    same_codes(torch.stack([values, -values]))


def test_rows_of_zeros_and_of_next_to_nothing():
    x = torch.zeros(3, 32)
    x[1, 5], x[2, 7] = 1e-38, 3e-30
    same_codes(x)
    assert torch.equal(quantize_rows(x)[0].float()[0], torch.zeros(32))


def test_what_is_not_finite_is_not_finite_afterwards():
    x = torch.ones(2, 16)
    x[0, 3], x[1, 3] = float("nan"), float("inf")
    values = quantize_rows(x)[0].float()
    assert values[0, 3].isnan() and values[1, 3].isnan()
    assert (values[0, :3] == LARGEST).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "outputs", "columns"), [(1, 16, 16), (5, 64, 96), (20, 48, 512)])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.usefixtures("row_scaled_products")
def test_product(dtype, rows, outputs, columns, with_bias):
    rng = torch.Generator().manual_seed(2)
    matrix = Fp8Matrix.of(torch.randn(outputs, columns, generator=rng) * torch.logspace(-2, 0, outputs)[:, None])
    x = drawn(rows, columns, dtype)
    bias = torch.randn(outputs, generator=rng) if with_bias else None
    actual, expected = fp8_linear(x, matrix, bias).float(), reference_fp8_linear(x, matrix, bias).float()
    assert actual.shape == (rows, outputs)
    sizes = x.float().abs() @ (matrix.values.float() * matrix.scales).abs().t() + (0 if bias is None else bias.abs())
    assert ((actual - expected).abs() / sizes).max() < 2**-7  # rounded to bf16


def test_weights_are_within_a_16th():
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(3))
    matrix = Fp8Matrix.of(weight)
    back = matrix.values.float() * matrix.scales
    assert ((back - weight).abs() <= weight.abs() / 16 * 1.001 + matrix.scales * 2**-10).all()
    assert torch.equal(matrix.values.float().abs().amax(1), torch.full((16,), LARGEST))


def test_no_rows():
    assert fp8_linear(torch.empty(0, 16), Fp8Matrix.of(torch.ones(32, 16))).shape == (0, 32)


def test_what_it_does_not_take_is_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        Fp8Matrix.of(torch.ones(32, 20))
    with pytest.raises(ValueError, match="rows of 16"):
        fp8_linear(torch.ones(2, 32), Fp8Matrix.of(torch.ones(32, 16)))


@pytest.mark.parametrize(("capability", "named"), [((8, 0), "9.0 or later; this GPU's is 8.0"), ((9, 0), None)])
def test_a_gpu_without_them_is_named(monkeypatch, capability, named):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = refusal(torch.device("cuda"))
    assert reason is None if named is None else named in reason


def test_another_device_refuses(monkeypatch):
    monkeypatch.setattr(module, "refusal", lambda device: "no such product")
    with pytest.raises(NotImplementedError, match="no such product"):
        fp8_linear(torch.ones(2, 16), Fp8Matrix.of(torch.ones(32, 16)))


def test_builds_for_a_gpu_without_spills():
    code = (
        "from kernels.gpu.build import build\nfrom kernels.gpu.linear.fp8 import VARIANTS\n"
        "print(build('m', VARIANTS[0], 90).fits)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
