"""The small kernels against their definitions, on random shapes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.cpu.ops.gelu_mul import gelu_mul, gelu_mul_reference, gelu_tanh_mul, gelu_tanh_mul_reference
from kernels.cpu.ops.rms_norm import rms_norm, rms_norm_reference
from kernels.cpu.ops.rope import rope_, rope_reference
from kernels.cpu.ops.silu_mul import silu_mul, silu_mul_reference
from kernels.cpu.ops.soft_cap import soft_cap_, soft_cap_reference
from kernels.cpu.ops.write_kv import kv_write, kv_write_reference

rows = st.integers(1, 20)
heads = st.integers(1, 9)
dims = st.sampled_from([2, 16, 64, 80, 96, 128])
seeds = st.integers(0, 2**31)


def drawn(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


@given(rows, dims, seeds, st.sampled_from([1e-3, 1.0, 1e3]))
def test_rms_norm(count, dim, seed, scale):
    x, weight = drawn(seed, count, dim, scale=scale), drawn(seed + 1, dim)
    close(rms_norm(x, weight, 1e-5), rms_norm_reference(x, weight, 1e-5))


@given(rows, heads, dims, seeds)
def test_rms_norm_with_a_weight_for_each_head(count, head_count, dim, seed):
    wide = drawn(seed, count, head_count + 2, dim)
    x, weight = wide[:, :head_count], drawn(seed + 1, head_count, dim)
    before = wide.clone()
    close(rms_norm(x, weight, 1e-6), rms_norm_reference(x, weight, 1e-6))
    assert torch.equal(wide, before)


def test_rms_norm_of_zeros_is_zero():
    assert torch.equal(rms_norm(torch.zeros(2, 8), torch.ones(8), 1e-6), torch.zeros(2, 8))


@given(rows, heads, dims, seeds, st.sampled_from([1.0, 1.3]))
def test_rope(count, head_count, dim, seed, scale):
    """On a view into wider rows, as the decoder calls it: what lies beside must stay as it is."""
    wide = drawn(seed, count, (head_count + 1) * dim)
    angles = drawn(seed + 1, count, dim // 2, scale=50.0)
    expected = rope_reference(wide.view(count, -1, dim)[:, :head_count], angles.double(), scale)
    beside = wide[:, head_count * dim :].clone()
    cos, sin = angles.cos() * scale, angles.sin() * scale
    turned = rope_(
        wide.view(count, -1, dim)[:, :head_count], cos[:, None, None], torch.stack((-sin, sin), dim=1)[:, None]
    )
    close(turned, expected)
    assert turned.data_ptr() == wide.data_ptr()
    assert torch.equal(wide[:, head_count * dim :], beside)


def test_rope_keeps_lengths():
    x = drawn(0, 3, 2, 8)
    angles = drawn(1, 3, 4)
    assert torch.allclose(rope_reference(x, angles, 1.0).norm(dim=-1), x.norm(dim=-1))


@given(rows, st.integers(1, 200), seeds, st.sampled_from([1.0, 30.0]))
def test_silu_mul(count, width, seed, scale):
    gate_up = drawn(seed, count, 2 * width, scale=scale)
    close(silu_mul(gate_up), silu_mul_reference(gate_up))


@given(rows, st.integers(1, 200), seeds, st.sampled_from([0.1, 3.0]))
def test_gelu_mul(count, width, seed, scale):
    gate_up = drawn(seed, count, 2 * width, scale=scale)
    close(gelu_mul(gate_up), gelu_mul_reference(gate_up))
    close(gelu_tanh_mul(gate_up), gelu_tanh_mul_reference(gate_up))


def test_the_two_gelus_differ_where_they_should():
    gate_up = torch.tensor([[-2.5, 1.0]])
    difference = (gelu_mul(gate_up) - gelu_tanh_mul(gate_up)).abs().item()
    assert 1e-4 < difference < 1e-3  # the approximation's error is largest around 2.5 from 0


@given(rows, heads, dims, seeds)
def test_kv_write(count, head_count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    storage = torch.randn(32, 3, 2 * head_count * dim, generator=generator)
    expected = storage.clone()
    slots = torch.randperm(32, generator=generator)[:count]
    kv = torch.randn(count, 3 * head_count * dim, generator=generator)[:, head_count * dim :]
    kv_write(storage[:, 1], slots, kv)
    kv_write_reference(expected[:, 1], slots, kv)
    assert torch.equal(storage, expected)


@pytest.mark.parametrize("op", [rms_norm_reference, rms_norm])
def test_rms_norm_divides_by_the_root_of_the_mean_square(op):
    x = torch.tensor([[3.0, 4.0]])  # mean square 12.5
    close(op(x, torch.tensor([1.0, 2.0]), 0.0), torch.tensor([[3.0, 8.0]]) / 12.5**0.5)


@given(rows, dims, seeds, st.sampled_from([0.5, 30.0]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_soft_cap(count, dim, seed, cap, scale):
    x = drawn(seed, count, dim, scale=scale)
    expected = soft_cap_reference(x, cap)
    assert expected.abs().max() <= cap
    close(soft_cap_(x, cap), expected)
