"""How a step is laid out for the GPU's kernels, against a layout written out row by row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.gpu.batch import GpuBatch, Sharing, would_cascade
from engine.sequence_input import SequenceInput
from tests.engine.gpu.cases import CPU, SIZE

SHARING = Sharing(heads=4, kv_heads=2, block_bytes=100, least_saved=200)


@st.composite
def inputs(draw):
    """One sequence: its chunk begins anywhere, and its table holds blocks of its own in any order."""
    start, length = draw(st.integers(0, 70)), draw(st.sampled_from([1, 1, 2, 5, 40]))
    blocks = -(-(start + length) // SIZE) + draw(st.integers(0, 2))  # a table may be longer than the chunk needs
    return SequenceInput(
        token_ids=draw(st.lists(st.integers(0, 999), min_size=length, max_size=length)),
        start=start,
        block_table=draw(st.lists(st.integers(0, 99), min_size=blocks, max_size=blocks, unique=True)),
        wanted=draw(st.sampled_from([None, 0, 1, length])),
        newest=draw(st.sampled_from([None, None, 0, 7])),
        adapter=draw(st.sampled_from([0, 0, 3])),
    )


def rows_of(batch):
    """(first row, rows) of each sequence of the batch, in its order."""
    starts = (batch.row_starts + batch.singles).tolist()
    ends = [*starts[1:], len(batch.token_ids)]
    chunks = [(start, end - start) for start, end in zip(starts, ends, strict=True) if end > start]
    return [(row, 1) for row in range(batch.singles)] + chunks


@given(st.lists(inputs(), min_size=1, max_size=6))
def test_every_token_has_its_row(sequences):
    batch = GpuBatch.build(sequences, SIZE, CPU)
    singles = [item for item in sequences if len(item.token_ids) == 1]
    laid = singles + [item for item in sequences if len(item.token_ids) > 1]  # each kind in the order given
    assert batch.singles == len(singles)
    assert [rows for _, rows in rows_of(batch)] == [len(item.token_ids) for item in laid]
    assert batch.longest == max(len(item.token_ids) for item in laid)
    assert batch.longest_single == max((item.start + 1 for item in singles), default=0)
    assert batch.cascade is None
    assert batch.chunks == [(len(item.token_ids), item.start + len(item.token_ids)) for item in laid[len(singles) :]]
    wanted, newest, adapters = {}, [], []
    ends = [*batch.table_starts.tolist()[1:], len(batch.tables)]
    tables = [batch.tables[start:end].tolist() for start, end in zip(batch.table_starts.tolist(), ends, strict=False)]
    assert len(tables) == batch.singles and sum(map(len, tables)) == len(batch.tables)
    for (first, count), item, length, table in zip(
        rows_of(batch), laid, batch.kv_lengths.tolist(), tables + batch.block_tables.tolist(), strict=True
    ):
        positions = range(item.start, item.start + count)
        assert batch.token_ids[first : first + count].tolist() == item.token_ids
        assert batch.positions[first : first + count].tolist() == list(positions)
        slots = [item.block_table[at // SIZE] * SIZE + at % SIZE for at in positions]
        assert batch.slots[first : first + count].tolist() == slots
        assert length == positions.stop
        used = -(-length // SIZE)
        assert table == item.block_table[:used] + [0] * (len(table) - used if count > 1 else 0)
        wanted[id(item)] = range(first + count - item.results, first + count)
        newest += [] if item.newest is None else [[first + count - 1, item.newest]]
        adapters += [item.adapter] * count
    assert batch.results.tolist() == [row for item in sequences for row in wanted[id(item)]]
    assert sorted(batch.newest.T.tolist()) == sorted(newest)
    assert (batch.adapters is None) == (not any(adapters))
    assert batch.adapters is None or batch.adapters.tolist() == adapters


def test_types_are_those_that_the_kernels_take():
    batch = GpuBatch.build([SequenceInput(token_ids=[1, 2], start=0, block_table=[0], adapter=1)], SIZE, CPU)
    wide = (batch.token_ids, batch.positions, batch.slots, batch.results, batch.newest, batch.adapters)
    assert {part.dtype for part in wide} == {torch.int64}
    assert {
        part.dtype
        for part in (batch.row_starts, batch.kv_lengths, batch.tables, batch.table_starts, batch.block_tables)
    } == {torch.int32}


def test_ids_in_flight_come_from_the_table_and_others_stay():
    sequences = [
        SequenceInput(token_ids=[10, 11, 0], start=4, block_table=[0], newest=2),
        SequenceInput(token_ids=[12], start=0, block_table=[1]),
        SequenceInput(token_ids=[0], start=9, block_table=[2], newest=0),
    ]
    batch = GpuBatch.build(sequences, SIZE, CPU)
    batch.fill(torch.tensor([70, 71, 72]))
    assert batch.token_ids.tolist() == [12, 70, 10, 11, 72]


@pytest.mark.parametrize(("singles", "chunk", "keys"), [(1, 0, 1), (17, 0, 64), (0, 2, 1), (3, 40, 20), (0, 2, 60)])
def test_padding_writes_nowhere_and_has_a_batchs_shapes(singles, chunk, keys):
    batch = GpuBatch.of_padding(singles, chunk, keys, SIZE, CPU)
    rows, sequences = singles + chunk, singles + (chunk > 0)
    assert (batch.slots == -1).all()
    for part in (batch.token_ids, batch.positions, batch.slots, batch.results):
        assert part.shape == (rows,) and part.dtype == torch.int64
    seen = max(chunk, keys)
    assert batch.kv_lengths.tolist() == [0] * singles + [seen] * (chunk > 0)
    assert batch.block_tables.shape == (sequences - singles, -(-seen // SIZE) * (chunk > 0))
    assert list(batch.chunks) == [(chunk, seen)] * (chunk > 0)
    assert batch.table_starts.tolist() == [0] * singles and len(batch.tables)
    assert batch.row_starts.tolist() == ([0, chunk] if chunk else [0])
    assert (batch.longest, batch.longest_single) == (max(chunk, 1), keys)


def decode(length, table):
    return SequenceInput(token_ids=[5], start=length - 1, block_table=table)


@pytest.mark.parametrize(
    ("sequences", "grouped"),
    [
        ([decode(33, [7, 30, 2]), decode(33, [7, 30, 1])], True),  # two blocks are read once: 200 bytes
        ([decode(33, [7, 30, 2]), decode(33, [7, 31, 1])], False),  # one block: 100 bytes
        (
            [decode(33, [7, 30, 2]), decode(33, [1, 2, 3]), decode(40, [7, 30, 1])],
            True,
        ),  # neighbours once they are sorted
        ([decode(33, [7, 30, 2])], False),
        ([decode(17, [7, 30]), decode(33, [7, 30, 1])], False),  # the second block is not full for both
    ],
)
def test_what_would_be_grouped_is_grouped(sequences, grouped):
    assert would_cascade(sequences, SIZE, SHARING) == grouped
    assert (GpuBatch.build(sequences, SIZE, CPU, SHARING).cascade is not None) == grouped


def test_chunks_are_never_grouped():
    chunks = [SequenceInput(token_ids=[1, 2], start=32, block_table=[7, 30, block]) for block in (2, 1)]
    assert GpuBatch.build(chunks, SIZE, CPU, SHARING).cascade is None
