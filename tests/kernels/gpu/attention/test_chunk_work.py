"""Chunks that are split over their keys: the rule, the list, and the kernel against attention by definition."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.gpu.attention import chunk_work, paged
from kernels.gpu.attention.chunk_work import (
    FILLED,
    MOST,
    SHORTEST,
    list_pieces,
    most_pieces,
    most_states,
    plan_chunks,
    split_chunk,
)
from kernels.gpu.attention.launch import Config
from kernels.gpu.attention.paged import paged_attention, workspace_bytes
from kernels.gpu.attention.reference import reference_attention
from kernels.gpu.workspace import Workspace
from tests.kernels.gpu.attention.cases import Case, assert_close, compiles

CPU = torch.device("cpu")
CONFIG = Config(16, 16, warps=4, stages=2)
MIXED = [
    (3, 5),
    (9, 300),
    (2, 40),
    (20, 170),
    (2, 129),
    (40, 40),
]  # short ones beside long ones, and a prompt that begins


def split(chunks, heads):
    group = heads[0] // heads[1]
    return plan_chunks(chunks, group=group, kv_heads=heads[1], height=CONFIG.tile // group, device=CPU)


@given(
    st.lists(st.tuples(st.integers(2, 200), st.integers(0, 150_000)), min_size=1, max_size=8),
    st.sampled_from([1, 3, 4, 7, 8]),
    st.sampled_from([1, 2, 8, 32]),
    st.sampled_from([32, 64, 128]),
)
def test_pieces_tiles_and_states_are_within_their_bounds(lengths, group, kv_heads, tile):
    """Of any chunks; and each tile's pieces have all of its keys, once."""
    chunks = [(rows, rows + before) for rows, before in lengths]
    shape = {"group": group, "kv_heads": kv_heads, "height": tile // group}
    items, split = list_pieces(chunks, **shape)
    rows = sum(rows for rows, _ in chunks)
    pieces, tiles = most_pieces(rows, len(chunks), max(keys for _, keys in chunks), **shape)
    assert len(items) <= pieces and max(item[6] for item in items) < tiles
    assert split == any(item[5] > 1 for item in items)
    of_tiles = {}
    for sequence, first, start, stop, *_ in items:
        of_tiles.setdefault((sequence, first), []).append((start, stop))
    assert len(of_tiles) == sum(-(-each // shape["height"]) for each, _ in chunks)
    for (sequence, _), parts in of_tiles.items():
        edges = sorted(parts)
        assert edges[0][0] == 0 and edges[-1][1] == chunks[sequence][1]
        assert all(one[1] == other[0] for one, other in pairwise(edges))
    work = plan_chunks(chunks, **shape, device=CPU)
    assert (work is None) == (not split)
    if work is not None:
        assert work.items.tolist() == [list(item) for item in items]
        assert work.states <= most_states(rows, group * kv_heads, kv_heads, 200_000)


@pytest.fixture
def short_parts(monkeypatch):
    """Parts from 32 keys on; what they have a multiple of is a tile of keys."""
    monkeypatch.setattr(chunk_work, "SHORTEST", 32)
    monkeypatch.setattr(chunk_work, "_STEP", 16)


def attend(case, work, workspace=None, **options):
    out, log_sums = case.poisoned(), torch.full(case.q.shape[:2], float("nan"))
    paged_attention(
        *case.shared(), scale=0.3, longest=case.longest, scales=case.scales, log_sums=log_sums, out=out,
        config=CONFIG, work=work, workspace=workspace, **options,
    )  # fmt: skip
    assert work is None or not work.arrived.any()  # ready for the next layer
    return out, log_sums


@pytest.mark.parametrize(
    ("heads", "options"),
    [
        ((4, 2), {}),
        ((3, 1), {"block_size": 32}),
        ((2, 2), {"dim": 40, "fp8": True}),
        ((8, 1), {"dtype": torch.float16}),
    ],
)
def test_definition(short_parts, heads, options):
    case = Case(MIXED, heads=heads, **options)
    work = split(case.lengths, heads)
    assert work.states > 0 and int(work.items[:, 5].max()) > 4
    out, log_sums = attend(case, work, soft_cap=20.0)
    wanted = reference_attention(*case.shared(), scale=0.3, scales=case.scales, soft_cap=20.0)
    assert_close(out, wanted.out)
    torch.testing.assert_close(log_sums, wanted.log_sums, rtol=0, atol=1e-4)


def test_a_chunk_does_not_depend_on_its_company_nor_on_who_merges(short_parts):
    """Bit by bit: alone or not, whatever the order of the pieces, and whatever the workspace held."""
    case = Case(MIXED, heads=(3, 1))
    work = split(case.lengths, (3, 1))
    together = attend(case, work)
    room = Workspace(workspace_bytes(sum(rows for rows, _ in MIXED), 3, 1, 16, 300), CPU)
    for order in (torch.arange(len(work.items)).flip(0), torch.randperm(len(work.items))):
        room.memory.fill_(0xFF)
        other = chunk_work.ChunkWork(work.items[order].contiguous(), work.arrived, work.states)
        for one, two in zip(together, attend(case, other, room), strict=True):
            assert torch.equal(one, two)
    for index in (1, 3, 5):
        first, last = case.row_starts[index : index + 2].tolist()
        alone = Case(MIXED, heads=(3, 1)).alone(index)
        alone.q, alone.row_starts = case.q[first:last], torch.tensor([0, last - first], dtype=torch.int32)
        for one, all_rows in zip(attend(alone, split(alone.lengths, (3, 1))), together, strict=True):
            assert torch.equal(one, all_rows[first:last])


def test_every_key_of_every_tile_is_in_one_piece(short_parts):
    for heads in ((4, 2), (3, 1)):
        height = CONFIG.tile // (heads[0] // heads[1])
        items = split(MIXED, heads).items.tolist()
        pieces = [stop - start for _, _, start, stop, *_ in items]
        assert pieces == sorted(pieces, reverse=True)
        states, tiles = [], set()
        for sequence, (rows, keys) in enumerate(MIXED):
            for first in range(0, rows, height):
                mine = sorted(item for item in items if item[:2] == [sequence, first])
                assert [start for _, _, start, *_ in mine] == [0, *(stop for _, _, _, stop, *_ in mine[:-1])]
                assert mine[-1][3] == keys
                assert [item[4] for item in mine] == list(range(len(mine))) and {item[5] for item in mine} == {
                    len(mine)
                }
                assert len({(item[6], item[7]) for item in mine}) == 1
                tiles.add(mine[0][6])
                if len(mine) > 1:
                    states += range(mine[0][7], mine[0][7] + len(mine) * min(height, rows - first))
        assert sorted(states) == list(range(split(MIXED, heads).states)) and len(tiles) == max(tiles) + 1


def test_the_rule():
    """Of Llama 3 8B: 32 new rows on 128k keys are 16 parts, and no chunk is split that fills a chip by itself."""
    assert -(-131_072 // split_chunk(32, 131_072, 4, 8)) == 16
    assert split_chunk(2048, 131_072, 4, 8) >= 131_072
    assert split_chunk(32, 2 * SHORTEST - 1, 4, 8) >= 2 * SHORTEST - 1
    for rows in (2, 31, 33, 200, 600):
        for keys in range(rows, 140_000, 4321):
            for group, kv_heads in ((4, 8), (8, 1), (1, 32), (4, 200)):
                span = split_chunk(rows, keys, group, kv_heads)
                parts = -(-keys // span)
                assert parts <= MOST and (parts == 1 or span >= SHORTEST)
                assert parts == 1 or parts * kv_heads * -(-rows * group // 128) <= FILLED
                height = 128 // group
                found = plan_chunks([(rows, keys)], group=group, kv_heads=kv_heads, height=height, device=CPU)
                assert (found is None) == (parts == 1)
                assert found is None or found.states <= most_states(rows, group * kv_heads, kv_heads, keys)


def test_windows_and_prefixes_are_not_split(short_parts):
    case = Case(MIXED)
    for options in ({"window": 9}, {"causal": False}):
        with pytest.raises(ValueError, match="in causal order and without a window"):
            attend(case, split(MIXED, (4, 2)), **options)


def test_a_variant_compiles():
    assert compiles(paged, "llama-8b bf16 split", 90)
