"""The merge of partial attention states against its definition."""

import pytest
import torch

from kernels.gpu.attention import merge_states as module
from kernels.gpu.attention.merge_states import config_for, merge_states, reference_merge_states
from tests.kernels.gpu.attention.cases import assert_close, compiles

NAN, EMPTY = float("nan"), float("-inf")


def drawn(parts, rows=3, heads=2, dim=16, dtype=torch.float32, empty=0.3):
    """States whose log sums differ by tens, some of them empty: those hold NaN."""
    generator = torch.Generator().manual_seed(parts * 1000 + dim)
    outputs = torch.randn(parts, rows, heads, dim, generator=generator).to(dtype)
    log_sums = torch.randn(parts, rows, heads, generator=generator) * 10
    gone = torch.rand(parts, rows, heads, generator=generator) < empty
    gone[:, 0] = False
    return outputs.masked_fill(gone[..., None], NAN), log_sums.masked_fill(gone, EMPTY)


def check(outputs, log_sums):
    out, log_sum = merge_states(outputs, log_sums)
    wanted, wanted_sum = reference_merge_states(outputs, log_sums)
    assert_close(out, wanted)
    torch.testing.assert_close(log_sum, wanted_sum, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("dim", [16, 24, 64, 80, 128, 256])
@pytest.mark.parametrize("parts", [1, 2, 31, 33, 130])
def test_parts(parts, dim):
    check(*drawn(parts, dim=dim))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types(dtype):
    check(*drawn(5, dtype=dtype))


def test_all_parts_empty():
    outputs, log_sums = drawn(4)
    log_sums[:, 1] = EMPTY
    out, log_sum = merge_states(outputs, log_sums)
    assert (out[1] == 0).all() and (log_sum[1] == EMPTY).all()
    assert out[0].isfinite().all()


def test_huge_and_tiny_log_sums():
    outputs, log_sums = drawn(3, empty=0.0)
    log_sums[0], log_sums[1], log_sums[2] = 1e5, -1e5, 1e5
    out, _ = merge_states(outputs, log_sums)
    assert_close(out, (outputs[0] + outputs[2]) / 2)


def test_empty_parts_behind_change_no_bit():
    outputs, log_sums = drawn(7)
    more = 3 * config_for(16)[0]
    long = torch.cat([outputs, torch.full((more, *outputs.shape[1:]), NAN)])
    long_sums = torch.cat([log_sums, torch.full((more, *log_sums.shape[1:]), EMPTY)])
    for short, padded in zip(merge_states(outputs, log_sums), merge_states(long, long_sums), strict=True):
        assert torch.equal(short, padded)


def test_one_part_comes_back_as_it_is():
    outputs, log_sums = drawn(1, empty=0.0)
    out, log_sum = merge_states(outputs, log_sums)
    assert torch.equal(out, outputs[0]) and torch.equal(log_sum, log_sums[0])


def test_into_given_places_of_another_type():
    outputs, log_sums = drawn(3)
    wide, log_sum = torch.full((3, 2, 40), NAN, dtype=torch.float16), torch.full((3, 2), NAN)
    out, found = merge_states(outputs, log_sums, out=wide[:, :, 8:24], log_sum=log_sum)
    wanted, wanted_sum = reference_merge_states(outputs, log_sums)
    assert_close(out, wanted.half())
    assert found is log_sum
    torch.testing.assert_close(log_sum, wanted_sum)
    assert wide[:, :, :8].isnan().all() and wide[:, :, 24:].isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"log_sums": torch.zeros(3, 3, 1)}, "fp32"),
        ({"log_sums": torch.zeros(3, 3, 2).half()}, "fp32"),
        ({"out": torch.zeros(3, 2, 17)}, "3 rows"),
        ({"log_sum": torch.zeros(2, 3).T}, "contiguous"),
        ({"outputs": torch.zeros(3, 3, 2, 32)[..., ::2]}, "along dim"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    outputs, log_sums = drawn(3)
    with pytest.raises(ValueError, match=message):
        merge_states(**({"outputs": outputs, "log_sums": log_sums} | change))


def test_a_variant_compiles():
    assert compiles(module, "llama-8b bf16", 90)
