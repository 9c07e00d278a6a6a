"""Blocks between pools on the host, and the kernel that a device would launch, interpreted."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gpu.kv.block_copy import WORDS, BlockCopier, _copy_blocks, copy_blocks, reference_copy_blocks
from kernels.runs import Run, joined
from tests.drawn import drawn


def pool(blocks, *shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-120, 120, (blocks, *shape), generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.uint8])
@pytest.mark.parametrize("values", [1, 3, 16, WORDS - 1, WORDS, WORDS + 1, 4 * WORDS, 2 * WORDS + 2])
def test_the_kernel_copies_every_byte(dtype, values):
    """Blocks of every size around a program's share; in words of 4 bytes if they fit, else in bytes."""
    source, target = pool(6, values, dtype=dtype), torch.full((5, values), 7.0).to(dtype)
    expected = target.clone().view(torch.uint8)
    moves = torch.tensor([[5, 0, 2, 2], [1, 4, 0, 3]])
    copy_blocks(source, target, moves)
    reference_copy_blocks(source.view(torch.uint8), expected, moves)
    assert torch.equal(target.view(torch.uint8), expected)


def test_the_kernel_reaches_beyond_2_to_31_words():
    """One program of the launch that blocks of 2^28 bytes would take: the rest is a minute of interpreting."""
    words = 2**28
    source, target = torch.empty(9 * words + WORDS, dtype=torch.uint8), torch.zeros(1, WORDS, dtype=torch.uint8)
    source[9 * words :] = pool(1, WORDS, dtype=torch.uint8)[0]  # the others are reserved, not resident
    _copy_blocks[(1,)](source, target, torch.tensor([[9], [0]]), 1, words // WORDS, words, WORDS=WORDS)
    assert torch.equal(target, pool(1, WORDS, dtype=torch.uint8))


def test_the_kernel_without_moves_or_values():
    source, target = pool(3, 4), pool(3, 4, seed=1)
    before = target.clone()
    copy_blocks(source, target, torch.empty((2, 0), dtype=torch.int64))
    assert torch.equal(target, before)
    copy_blocks(source[:, :0].contiguous(), target[:, :0].contiguous(), torch.tensor([[0], [1]]))


@pytest.mark.parametrize(
    ("moves", "runs"),
    [
        ([], []),
        ([(3, 8)], [Run(3, 8, 1)]),
        ([(0, 4), (1, 5), (2, 6)], [Run(0, 4, 3)]),
        ([(2, 6), (0, 4), (1, 5)], [Run(0, 4, 3)]),  # in any order
        ([(0, 4), (1, 6)], [Run(0, 4, 1), Run(1, 6, 1)]),  # neighbours on one side only
        ([(0, 4), (2, 5)], [Run(0, 4, 1), Run(2, 5, 1)]),
        ([(0, 5), (1, 4)], [Run(0, 5, 1), Run(1, 4, 1)]),
        ([(0, 0), (1, 1), (5, 2), (6, 3), (9, 4)], [Run(0, 0, 2), Run(5, 2, 2), Run(9, 4, 1)]),
    ],
)
def test_neighbours_are_joined(moves, runs):
    assert joined(moves) == runs


moves_of_a_pool = st.lists(st.tuples(st.integers(0, 11), st.integers(0, 8)), max_size=9, unique_by=lambda move: move[1])


@settings(max_examples=drawn(80))
@given(moves_of_a_pool)
def test_a_copier_does_what_the_reference_does(moves):
    """Values and their scales, whatever the order; blocks that are no target keep their content."""
    source, scales = pool(12, 2, 3), pool(12, 5, seed=1)
    target, target_scales = torch.full((9, 2, 3), float("nan")), torch.full((9, 5), float("nan"))
    expected, expected_scales = target.clone(), target_scales.clone()
    handle = BlockCopier((source, target), (scales, target_scales)).copy(moves)
    index = torch.tensor(moves, dtype=torch.int64).reshape(-1, 2).t()
    reference_copy_blocks(source, expected, index)
    reference_copy_blocks(scales, expected_scales, index)
    torch.testing.assert_close(target, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(target_scales, expected_scales, rtol=0, atol=0, equal_nan=True)
    assert (handle.blocks, handle.copies) == (len(moves), len(joined(moves)))


@given(moves_of_a_pool)
def test_runs_are_the_moves_and_no_two_could_be_one(moves):
    runs = joined(moves)
    made = [(run.source + i, run.target + i) for run in runs for i in range(run.count)]
    assert sorted(made) == sorted(moves)
    ends = {(run.source + run.count, run.target + run.count) for run in runs}
    assert not ends & {(run.source, run.target) for run in runs}


def test_swap_out_and_back_gives_the_same_blocks():
    """Device to host and back through shuffled host blocks, as preemption does it."""
    device, host = pool(20, 4, 8, dtype=torch.float16), torch.zeros(10, 4, 8, dtype=torch.float16)
    before, there = device.clone(), random.Random(1).sample(range(10), 10)
    out, back = BlockCopier((device, host)), BlockCopier((host, device))
    handle = out.copy(list(zip(range(5, 15), there, strict=True)))
    device[5:15] = float("nan")
    back.copy(list(zip(there, range(5, 15), strict=True)), after=[handle])
    assert torch.equal(device, before)


def test_what_it_reports():
    source, target = pool(16, 2), pool(16, 2, seed=1)
    copier = BlockCopier((source, target))
    assert copier.blocks_per_copy == 0
    handle = copier.copy([(i, i) for i in range(8)])
    assert (handle.blocks, handle.copies, handle.done) == (8, 1, True)
    handle.wait()
    copier.copy([(0, 9), (2, 11)])
    assert copier.copy([]).copies == 0
    assert (copier.blocks, copier.copies, copier.blocks_per_copy) == (10, 3, 10 / 3)


def test_blocks_of_one_pool():
    """Copy on write: within a pool, but never from a block that the same copy overwrites."""
    blocks = pool(6, 3)
    before = blocks.clone()
    copier = BlockCopier((blocks, blocks))
    copier.copy([(0, 4), (0, 5)])
    assert torch.equal(blocks[4:], before[[0, 0]]) and torch.equal(blocks[:4], before[:4])
    with pytest.raises(ValueError, match="source and target in one pool"):
        copier.copy([(0, 1), (1, 2)])
    assert torch.equal(blocks[:4], before[:4])


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([(0, 1), (1, 1)], "target twice"),
        ([(4, 0)], r"source blocks 4\.\.4 of a pool that has 0\.\.3"),
        ([(0, 0), (1, 3)], r"target blocks 0\.\.3 of a pool that has 0\.\.2"),
        ([(-1, 0)], "source blocks"),
        ([(0, -1)], "target blocks"),
    ],
)
def test_moves_that_make_no_sense_are_refused(moves, message):
    target = pool(3, 2)
    before = target.clone()
    with pytest.raises(ValueError, match=message):
        BlockCopier((pool(4, 2, seed=1), target)).copy(moves)
    assert torch.equal(target, before)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "at least one"),
        ([(pool(2, 3), pool(2, 4))], "do not fit"),
        ([(pool(2, 3), pool(2, 3, dtype=torch.float16))], "do not fit"),
        ([(pool(4, 3)[::2], pool(2, 3))], "contiguous"),
        ([(pool(2, 3), pool(2, 3)), (pool(3, 3), pool(2, 3))], "number of blocks"),
    ],
)
def test_tensors_that_are_no_pools_are_refused(pairs, message):
    with pytest.raises(ValueError, match=message):
        BlockCopier(*pairs)
