"""Copies through staging memory: every value once, whatever the pieces."""

import pytest
import torch

from engine.loading.staging import copy_through


@pytest.mark.parametrize("shape", [(0,), (1,), (7, 5), (16, 8)])
@pytest.mark.parametrize("piece", [1, 12, 64, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_arrive_in_the_targets_type(shape, piece, dtype):
    source = torch.randn(shape)
    out = torch.full(shape, float("nan"), dtype=dtype)
    copy_through(source, out, piece)
    assert torch.equal(out, source.to(dtype))


def test_a_source_in_another_order_is_taken_by_its_values():
    source = torch.randn(6, 4).t()
    out = torch.empty(4, 6)
    copy_through(source, out, 20)
    assert torch.equal(out, source)
