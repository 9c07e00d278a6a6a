"""Groups of a batch against trying all of them."""

import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.gpu.attention.cascade_groups import CascadeBatch, Group, find_groups
from tests.drawn import drawn

CPU = torch.device("cpu")
BLOCK_SIZE = 16


def batch(prefixes, seed=0):
    """Tables and lengths: for each (members, shared blocks) neighbours with that much in common, and rests of their own."""
    rng, ids = random.Random(seed), iter(range(10_000))
    tables, lengths = [], []
    for members, shared in prefixes:
        common = [next(ids) for _ in range(shared)]
        for _ in range(members):
            length = shared * BLOCK_SIZE + rng.randint(1, 3 * BLOCK_SIZE)
            tables.append([*common, *(next(ids) for _ in range(-(-length // BLOCK_SIZE) - shared))])
            lengths.append(length)
    return tables, lengths


def test_groups_are_found():
    tables, lengths = batch([(4, 10), (1, 0), (3, 5), (2, 0), (2, 40)])
    assert find_groups(tables, lengths, BLOCK_SIZE, 1, 0) == [Group(0, 4, 10), Group(5, 8, 5), Group(10, 12, 40)]


def test_the_block_being_written_is_not_shared():
    """Two equal tables: of 32 keys the last block is the one that the step writes into; of 33 two are whole."""
    assert find_groups([[7, 8], [7, 8]], [32, 32], BLOCK_SIZE, 1, 0) == [Group(0, 2, 1)]
    assert find_groups([[7, 8, 1], [7, 8, 2]], [33, 33], BLOCK_SIZE, 1, 0) == [Group(0, 2, 2)]
    assert find_groups([[7], [7]], [16, 9], BLOCK_SIZE, 1, 0) == []


def test_only_what_pays():
    tables, lengths = batch([(4, 10), (2, 1)])
    # The first group saves 30 blocks; the other's single one is too little.
    assert find_groups(tables, lengths, BLOCK_SIZE, 100, 3000) == [Group(0, 4, 10)]
    assert find_groups(tables, lengths, BLOCK_SIZE, 100, 3200) == []
    assert find_groups([[1]], [5], BLOCK_SIZE, 100, 0) == []
    assert find_groups([], [], BLOCK_SIZE, 100, 0) == []


def best_saving(heights):
    """The largest saving of one group, by trying every run."""
    runs = [heights[a:b] for a in range(len(heights)) for b in range(a + 1, len(heights) + 1)]
    return max((len(run) * min(run) for run in runs), default=0)


@settings(max_examples=drawn(150))
@given(st.lists(st.integers(0, 6), min_size=1, max_size=9), st.data())
def test_against_all_runs(heights, data):
    """Tables whose neighbours share `heights` blocks: ids follow from the column at which a row left its neighbour."""
    tables = [[0] * 8]
    for row, height in enumerate(heights):
        tables.append([*tables[-1][:height], *[row + 1] * (8 - height)])
    lengths = [8 * BLOCK_SIZE] * len(tables)
    groups = find_groups(tables, lengths, BLOCK_SIZE, 1, 0)
    assert max((group.saved for group in groups), default=0) == best_saving(heights)
    assert all(left.stop <= right.start for left, right in pairwise(groups))
    for group in groups:
        assert group.stop - group.start >= 2
        assert len({tuple(tables[row][: group.blocks]) for row in range(group.start, group.stop)}) == 1
    together = [row for group in groups for row in range(group.start, group.stop)]
    outside = [height for row, height in enumerate(heights) if row not in together and row + 1 not in together]
    assert not any(outside)  # no two neighbours that share are left alone


@pytest.mark.parametrize("heads", [(8, 2), (4, 4), (7, 1)])
def test_every_key_is_read_once(heads):
    """Parts and rests of a sequence, laid end to end, are its table."""
    tables, lengths = batch([(1, 0), (40, 70), (3, 5), (2, 0), (2, 33)], seed=3)
    groups = find_groups(tables, lengths, BLOCK_SIZE, 1, 0)
    laid = CascadeBatch.build(
        groups, tables, lengths, block_size=BLOCK_SIZE, heads=heads[0], kv_heads=heads[1], device=CPU
    )
    spans = len(laid.prefix_lengths) // laid.splits
    rows = [[] for _ in tables]
    for part, (start, stop) in enumerate(pairwise(laid.prefix_starts.tolist())):
        keys = int(laid.prefix_lengths[part])
        assert keys % BLOCK_SIZE == 0
        for row in range(start, stop):
            assert row // len(tables) == part // spans  # each split holds a copy of the batch
            rows[row % len(tables)] += laid.prefix_tables[part, : keys // BLOCK_SIZE].tolist()
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        own = int(laid.lengths[row])
        assert own >= 1
        assert len(rows[row]) * BLOCK_SIZE + own == length
        first = int(laid.table_starts[row])
        assert rows[row] + laid.tables[first : first - (-own // BLOCK_SIZE)].tolist() == table
    assert laid.longest_kv == int(laid.lengths.max())
    assert laid.longest == 40
