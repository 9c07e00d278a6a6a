"""Paged attention against its definition: any blocks, chunks, windows and head shapes; and that it copies no run."""

import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.cpu.ops.paged_attention import (
    Fragments,
    Span,
    paged_attention,
    paged_attention_reference,
    plan_tiles,
)
from tests.drawn import drawn

BLOCKS = 48


@dataclass
class Case:
    """Sequences as (start, length) over one pool, each with a block table of its own."""

    chunks: list[tuple[int, int]]
    kv_heads: int = 2
    group: int = 3
    dim: int = 16
    block_size: int = 8
    window: int | None = None
    soft_cap: float | None = None
    scattered: bool = True
    seed: int = 0

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)
        self.slots = BLOCKS * self.block_size
        storage = torch.randn(self.slots, 3, 2, self.kv_heads, self.dim, generator=generator)
        self.layer = storage[:, 1]
        rows = sum(length for _, length in self.chunks)
        fused = torch.randn(rows, self.kv_heads * (self.group + 2) * self.dim, generator=generator)
        width = self.kv_heads * self.group * self.dim
        self.queries = fused[:, :width].view(rows, self.kv_heads, self.group, self.dim)
        self.kv = fused[:, width:].view(rows, 2, self.kv_heads, self.dim)
        self.tables = self._tables()
        self._store()

    def _tables(self):
        blocks = list(range(BLOCKS))
        if self.scattered:
            random.Random(self.seed).shuffle(blocks)
        tables = []
        for start, length in self.chunks:
            count = -(-(start + length) // self.block_size)
            tables.append(blocks[:count])
            del blocks[:count]
        return tables

    def _store(self):
        first = 0
        for (start, length), table in zip(self.chunks, self.tables, strict=True):
            self.layer[self.slots_of(table, start, start + length)] = self.kv[first : first + length]
            first += length

    def slots_of(self, table, begin, end):
        size = self.block_size
        return torch.tensor([table[i // size] * size + i % size for i in range(begin, end)])

    @property
    def sides(self):
        return self.layer[:, 0].transpose(0, 1), self.layer[:, 1].transpose(0, 1)

    def plan(self):
        tiles, first = [], 0
        for (start, length), table in zip(self.chunks, self.tables, strict=True):
            tiles += plan_tiles(
                first=first, start=start, length=length,
                block_table=table, block_size=self.block_size, window=self.window,
            )  # fmt: skip
            first += length
        return tiles

    def actual(self, tiles=None):
        return paged_attention(
            self.queries, self.kv, *self.sides,
            tiles=tiles or self.plan(), scale=self.dim**-0.5, soft_cap=self.soft_cap,
        )  # fmt: skip

    def expected(self):
        parts, first = [], 0
        for (start, length), table in zip(self.chunks, self.tables, strict=True):
            slots = self.slots_of(table, 0, start + length)
            queries = self.queries[first : first + length]
            how = {"window": self.window, "soft_cap": self.soft_cap, "scale": self.dim**-0.5}
            parts.append(paged_attention_reference(queries, *self.sides, start=start, slots=slots, **how))
            first += length
        return torch.cat(parts)

    def check(self, atol=2e-6):
        torch.testing.assert_close(self.actual(), self.expected(), atol=atol, rtol=1e-5)


chunk = st.tuples(st.integers(0, 90), st.one_of(st.just(1), st.integers(1, 30)))


@settings(max_examples=drawn(150))
@given(
    chunks=st.lists(chunk, min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    dim=st.sampled_from([16, 64, 80, 96, 128]),
    block_size=st.sampled_from([8, 16]),
    window=st.one_of(st.none(), st.integers(1, 100)),
    soft_cap=st.one_of(st.none(), st.sampled_from([0.5, 50.0])),
    scattered=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition(**drawn):
    Case(**drawn).check()


@pytest.mark.parametrize("scattered", [True, False])
@pytest.mark.parametrize("chunk", [(1500, 1), (1501, 1), (1470, 60), (0, 700)])
def test_long_contexts(chunk, scattered):
    """Long enough for split rows, several fragments at a time, and more than one staged tile."""
    Case([chunk], block_size=32, scattered=scattered).check()


@pytest.mark.parametrize("window", [None, 1200])
@pytest.mark.parametrize("chunk", [(1500, 1), (1100, 60), (0, 1060)])
def test_long_contexts_with_capped_scores(chunk, window):
    """More keys than are scored at a time: in the pool, in the chunk itself, behind a window's mask."""
    Case([chunk], block_size=32, kv_heads=1, group=2, window=window, soft_cap=2.0, scattered=False).check()


def test_scores_far_apart_do_not_overflow():
    case = Case([(40, 1), (20, 12)])
    case.queries.mul_(60)
    assert case.expected().isfinite().all()
    case.check(atol=1e-4)  # scores of several hundred: fp32 knows them to 3e-5


def test_a_row_sees_nothing_outside_its_window():
    case = Case([(60, 1), (50, 9)], window=16)
    before = case.actual()
    for (start, _), table in zip(case.chunks, case.tables, strict=True):
        case.layer[case.slots_of(table, 0, start - 15)] = 1e6
    assert torch.equal(case.actual(), before)


def test_slots_outside_the_table_are_never_read():
    case = Case([(60, 1), (50, 9)])
    used = torch.cat(
        [case.slots_of(table, 0, sum(chunk)) for chunk, table in zip(case.chunks, case.tables, strict=True)]
    )
    unused = torch.ones(case.slots, dtype=torch.bool)
    unused[used] = False
    case.layer[unused] = float("nan")
    case.check()


def test_neighbouring_blocks_are_one_span():
    (tile,) = plan_tiles(first=3, start=70, length=1, block_table=[5, 6, 7, 20, 21], block_size=16, window=None)
    assert (tile.first, tile.rows, tile.own) == (3, 1, False)
    assert tile.pieces == (Span(80, 48), Span(320, 23))


def test_many_short_runs_are_fragments():
    (tile,) = plan_tiles(first=0, start=63, length=1, block_table=[9, 3, 5, 1], block_size=16, window=None)
    (piece,) = tile.pieces
    assert isinstance(piece, Fragments)
    assert len(piece.slots) == 64


class Sizes(TorchDispatchMode):
    """Notes the number of values of everything an operation newly allocates."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {argument.untyped_storage().data_ptr() for argument in args if isinstance(argument, torch.Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, tensor.numel())
        return result


@pytest.mark.parametrize("chunk", [(1500, 1), (1440, 60)])
def test_runs_of_blocks_are_read_in_place(chunk):
    """Nothing as large as the keys is allocated on the way: no gather, no hidden copy."""
    case = Case([chunk], block_size=32, scattered=False)
    tiles = case.plan()
    with Sizes() as sizes:
        case.actual(tiles)
    keys = sum(chunk) * case.kv_heads * case.dim
    assert 0 < sizes.largest < keys / 2
