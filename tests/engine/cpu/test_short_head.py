"""A draft's short head: the scores of the whole one where it looks, and nowhere else."""

import pytest
import torch

from engine.cpu.draft_model import ShortHead
from kernels.cpu.build import build as build_kernels
from kernels.cpu.build import compiler
from kernels.cpu.native import NativeOps
from kernels.cpu.packing import pack_float
from kernels.cpu.variants import choose, supported

VOCAB, WIDTH, TILE = 200, 64, 16


@pytest.fixture
def heads():
    if not supported() or compiler() is None:
        pytest.skip("no C++ compiler, or another processor")
    build_kernels(supported()[:1])
    ops = NativeOps(choose().library, 2)
    matrix = pack_float(torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0)))
    hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    return ShortHead(ops, matrix, VOCAB, fixed=3, others=2), ops.linear(hidden, matrix), hidden


def considered(head, whole, hidden):
    """The tiles that have scores, which are those of the whole head."""
    scores = head.logits(hidden)
    assert scores.shape == whole.shape
    there = scores > float("-inf")
    assert torch.equal(scores[there], whole[there])
    assert torch.equal(there[0], there[-1])
    assert torch.isin(scores[there], head.considered).all()
    return [tile for tile in range(-(-VOCAB // TILE)) if there[0, tile * TILE]]


def test_the_first_tiles_and_those_of_tokens_of_late(heads):
    head, whole, hidden = heads
    assert considered(head, whole, hidden) == [0, 1, 2, 3, 4]
    head.note([5, 9 * TILE + 3])
    assert considered(head, whole, hidden) == [0, 1, 2, 4, 9]
    head.note([VOCAB - 1, 4 * TILE])  # in order of ids: 4 is noted again, so 9 leaves
    assert considered(head, whole, hidden) == [0, 1, 2, 4, 12]
    head.note(range(0, 3 * TILE))
    assert considered(head, whole, hidden) == [0, 1, 2, 4, 12]


def test_scores_may_be_changed_and_are_new_each_time(heads):
    head, whole, hidden = heads
    head.logits(hidden[:1]).add_(1.0)
    assert considered(head, whole, hidden) == [0, 1, 2, 3, 4]
    head.logits(hidden)[:, 7] = float("nan")
    assert considered(head, whole, hidden[:3]) == [0, 1, 2, 3, 4]
