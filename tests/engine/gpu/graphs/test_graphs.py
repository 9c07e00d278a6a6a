"""Graphs over the buffers of decode steps, with a model whose answer shows everything that it was given."""

import gc
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.gpu.batch import GpuBatch
from engine.gpu.graph_inputs import CHUNKS, InputLayout
from engine.gpu.graph_policy import MOST_FAILURES, GraphPlan, GraphShape
from engine.gpu.graphs import CudaRecorder, EagerRecorder, NotRecorded, StepGraphs
from engine.sequence_input import SequenceInput
from kernels.gpu.attention.chunk_work import list_pieces
from scheduler.types.step import GraphCounts
from tests.engine.gpu.cases import CPU, SIZE

MOST, CONTEXT = 8, 64
NEWEST = torch.arange(100, 120)


@dataclass
class Ranks:
    """A group of `size` ranks, of which the others say `others` when asked whether they have recorded."""

    size: int = 1
    others: int = 1

    def least(self, number):
        return min(int(number), self.others)


@dataclass
class Echo:
    """A "model" whose hidden state of a row is what it reads for it: id, position, slot, keys, a checksum of its blocks."""

    group: Ranks = field(default_factory=Ranks)
    cascades: bool = False
    device: torch.device = CPU
    computed: list = field(default_factory=list)  # rows of each batch
    context = CONTEXT
    pool = SimpleNamespace(block_size=SIZE)
    config = SimpleNamespace(hidden_size=5, heads=4, kv_heads=2)
    tiles = {"group": 2, "kv_heads": 2, "height": 3}  # noqa: RUF012

    def lay_out(self, inputs):
        return GpuBatch.build(inputs, SIZE, CPU)

    def would_cascade(self, inputs):
        return self.cascades

    def compute(self, batch, out=None):
        self.computed.append(len(batch.token_ids))
        read = [(0, 0)] * len(batch.token_ids)
        for row in range(batch.singles):
            first = batch.table_starts[row]
            if batch.kv_lengths[row] >= 0:
                read[row] = self.attended(batch.kv_lengths[row], batch.tables[first : first + CONTEXT // SIZE])
        for index, table in enumerate(batch.block_tables):
            start, stop = (batch.origin + batch.row_starts[index : index + 2]).tolist()
            read[start:stop] = [self.attended(batch.kv_lengths[batch.singles + index], table)] * (stop - start)
        rows = [batch.token_ids, batch.positions, batch.slots, *torch.tensor(read).T]
        found = torch.stack([part.float() for part in rows], 1)[batch.results]
        return found if out is None else out.copy_(found)

    def attended(self, keys, table):
        """What attention reads: how many keys, and a checksum of their blocks."""
        return int(keys), sum(place * int(block) for place, block in enumerate(table[: -(-int(keys) // SIZE)], 1))


def graphs_of(model, recorder=None, *, chunks=None):
    return StepGraphs(model, GraphPlan(MOST), recorder or EagerRecorder(), torch.float32, chunks=chunks)


def decode(rows):
    return GraphShape("decode", rows)


def with_chunks(model, *recorded):
    """For steps of up to 40 tokens; those of so many rows have a graph."""
    graphs = graphs_of(model, chunks=GraphPlan(40, steps=lambda most: [12, 24, most]))
    for rows in recorded:
        graphs.record(GraphShape("chunks", rows))
    return graphs


def token(start=0, table=(3,), **changes):
    return SequenceInput(**{"token_ids": [7], "start": start, "block_table": list(table), "wanted": 1, **changes})


@st.composite
def decodes(draw):
    start = draw(st.integers(0, CONTEXT - 1))
    return token(
        start,
        draw(st.lists(st.integers(0, 50), min_size=start // SIZE + 1, max_size=CONTEXT // SIZE)),
        token_ids=[draw(st.integers(0, 99))],
        newest=draw(st.sampled_from([None, 0, 19])),
    )


@given(st.lists(st.lists(decodes(), min_size=1, max_size=MOST), min_size=1, max_size=3))
def test_a_replayed_step_reads_what_an_eager_one_reads(steps):
    model = Echo()
    graphs = graphs_of(model)
    for rows in (2, 8):
        graphs.record(decode(rows))
    for inputs in steps:
        hidden = graphs.forward(inputs, NEWEST).clone()
        batch = model.lay_out(inputs)
        batch.fill(NEWEST)
        torch.testing.assert_close(hidden, model.compute(batch), atol=0, rtol=0)
    assert graphs.replayed == len(steps)  # 3 rows too: 8 are twice those of their own bucket, 4


def test_rows_beyond_the_steps_are_padding_whatever_ran_before():
    model = Echo()
    graphs = graphs_of(model)
    graphs.record(decode(4))
    graphs.forward([token(40, (1, 2, 3)) for _ in range(4)], NEWEST)
    graphs.forward([token(5), token(6)], NEWEST)
    padding = graphs._hidden[2:4]
    assert padding[:, 2].tolist() == [-1, -1]  # slots
    assert padding[:, 3].tolist() == [0, 0]  # keys


@pytest.mark.parametrize(
    "odd",
    [
        token(token_ids=[1, 2], wanted=1),
        token(wanted=0),
        token(adapter=1),
    ],
    ids=["several tokens", "no result", "adapter"],
)
def test_steps_that_no_graph_has_run_eagerly_and_are_not_counted(odd):
    model = Echo()
    graphs = graphs_of(model)
    graphs.record(decode(2))
    del model.computed[:]
    graphs.forward([token(), odd], NEWEST)
    assert graphs.replayed == 0
    assert model.computed == [1 + len(odd.token_ids)]
    assert graphs.missed() is None


def test_a_step_that_cascades_runs_eagerly_and_its_bucket_is_not_blamed():
    model = Echo(cascades=True)
    graphs = graphs_of(model)
    graphs.record(decode(2))
    graphs.forward([token(), token()], NEWEST)
    assert (graphs.replayed, graphs.missed()) == (0, None)


def test_a_bucket_that_costs_is_missed_until_it_is_recorded():
    graphs = graphs_of(Echo())
    assert graphs.missed() is None
    graphs.forward([token(), token()], NEWEST)
    assert graphs.missed() == decode(2)
    graphs.record(decode(2))
    assert graphs.missed() is None
    graphs.forward([token(), token()], NEWEST)
    assert graphs.replayed == 1


class Fails:
    """Does the work and then fails to record it, or fails in the work."""

    def __init__(self, error):
        self.error = error

    def record(self, prepare, work):
        raise self.error


def test_failed_recordings_are_counted_and_do_not_go_on_for_ever(caplog):
    graphs = graphs_of(Echo(), Fails(RuntimeError("out of memory")))
    for failures in range(1, MOST_FAILURES + 1):
        graphs.record(decode(2))
        assert graphs.counts == GraphCounts(failed=failures)
    assert "no CUDA graph for 2 rows (decode): out of memory" in caplog.text
    assert "will run without" in caplog.text
    for _ in range(3):
        graphs.forward([token()], NEWEST)
    assert (graphs.missed(), graphs.replayed) == (None, 0)


def test_of_several_ranks_one_that_could_not_record_keeps_all_from_it(caplog):
    graphs = graphs_of(Echo(Ranks(size=2)), Fails(NotRecorded("busy")))
    graphs.record(decode(2))
    assert "busy" in caplog.text
    lagging = graphs_of(Echo(Ranks(size=2, others=0)))
    lagging.record(decode(2))
    for each in (graphs, lagging):
        each.forward([token()], NEWEST)
        assert each.counts == GraphCounts(failed=1)


def test_of_several_ranks_one_whose_work_fails_cannot_go_on():
    graphs = graphs_of(Echo(Ranks(size=2)), Fails(RuntimeError("device lost")))
    with pytest.raises(RuntimeError, match="device lost"):
        graphs.record(decode(2))


@given(st.integers(1, 300), st.integers(4, 5), st.lists(st.integers(0, 90), min_size=1, max_size=5))
def test_a_steps_inputs_lie_in_one_piece_without_overlap(rows, wide, narrow):
    layout = InputLayout(rows, wide, narrow)
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    numbers, parts = layout.split(memory)
    assert numbers.shape == (wide, rows) and [len(part) for part in parts] == narrow
    for number, part in enumerate((numbers, *parts), 1):
        part.fill_(number)
    assert all((part == number).all() for number, part in enumerate((numbers, *parts), 1))
    assert numbers.nbytes + sum(part.nbytes for part in parts) == layout.nbytes
    more = InputLayout(
        rows, wide, [*narrow[:-1], narrow[-1] + 7]
    )  # with room for more blocks, the others are where they were
    longer = torch.zeros(more.nbytes, dtype=torch.uint8)
    longer[: layout.nbytes] = memory
    for one, other in zip(parts, more.split(longer)[1], strict=True):
        assert torch.equal(one, other[: len(one)])


@st.composite
def chunks(draw):
    start = draw(st.integers(0, CONTEXT - 10))
    length = draw(st.integers(2, 9))
    return token(
        start,
        draw(st.lists(st.integers(0, 50), min_size=(start + length - 1) // SIZE + 1, max_size=CONTEXT // SIZE)),
        token_ids=draw(st.lists(st.integers(0, 99), min_size=length, max_size=length)),
        newest=draw(st.sampled_from([None, 0, 19])),
        wanted=draw(st.sampled_from([0, 1, length, None])),
    )


def mixed(most=40):
    """Steps of chunks and single tokens, in any order."""
    parts = st.tuples(st.lists(chunks(), min_size=1, max_size=3), st.lists(decodes(), max_size=MOST)).flatmap(
        lambda both: st.permutations(both[0] + both[1])
    )
    return parts.filter(lambda inputs: sum(len(item.token_ids) for item in inputs) <= most)


@settings(max_examples=20)
@given(st.lists(mixed(), min_size=1, max_size=3))
def test_a_replayed_step_with_chunks_reads_what_an_eager_one_reads(steps):
    model = Echo()
    graphs = with_chunks(model, 12, 24, 40)
    for inputs in steps:
        hidden = graphs.forward(inputs, NEWEST).clone()
        batch = model.lay_out(inputs)
        batch.fill(NEWEST)
        torch.testing.assert_close(hidden, model.compute(batch), atol=0, rtol=0)
    assert graphs.replayed == len(steps)


@settings(max_examples=20)
@given(mixed())
def test_every_piece_of_a_chunk_is_listed_and_no_other(inputs):
    model, laid = Echo(), []
    graphs = with_chunks(model, 40)
    kind = graphs._kinds[1]
    kind.inputs.fill(40, inputs, NEWEST)
    laid = [item for item in inputs if len(item.token_ids) > 1]
    wanted, _ = list_pieces([(len(item.token_ids), item.start + len(item.token_ids)) for item in laid], **model.tiles)
    batch = kind.inputs.batch(40)
    items = batch.work.items.tolist()
    assert items[: len(wanted)] == [list(item) for item in wanted]
    padding = [item for item in items[len(wanted) :] if item[0] == len(laid)]  # a chunk without keys
    used = sum(len(item.token_ids) for item in inputs)
    assert [item[1] for item in padding] == list(range(0, 40 - used, model.tiles["height"]))
    assert all(item[2:6] == [0, 0, 0, 1] for item in padding)
    assert all(item[0] == CHUNKS + 1 for item in items[len(wanted) + len(padding) :])
    assert batch.kv_lengths[batch.singles + len(laid)] == 0 and batch.row_starts[len(laid)] == used
    assert max(item[6] for item in wanted) < len(batch.work.arrived)
    singles = len(inputs) - len(laid)
    assert (batch.kv_lengths[singles : batch.singles] == -1).all()  # rows of chunks are none of decode attention's
    assert (batch.slots[sum(len(item.token_ids) for item in inputs) :] == -1).all()


def test_steps_with_chunks_for_which_there_is_no_room_run_eagerly():
    model = Echo()
    graphs = with_chunks(model, 40)
    two = token(token_ids=[1, 2], wanted=1)
    for inputs in (
        [two] * (CHUNKS + 1),
        [two, *[token()] * (MOST + 1)],
        [two, token(adapter=1)],
        [token(token_ids=[1] * 41, table=range(CONTEXT // SIZE))],
    ):
        graphs.forward(inputs, NEWEST)
    assert (graphs.replayed, graphs.missed()) == (0, None)
    graphs.forward([two] * CHUNKS, NEWEST)
    assert graphs.replayed == 1


def test_of_both_kinds_the_costliest_is_recorded_first_and_all_are_counted():
    graphs = with_chunks(Echo())
    assert graphs.first == [GraphShape("chunks", 40), GraphShape("chunks", 12), decode(8), decode(1)]
    chunk, decodes = graphs._kinds[1].plan, graphs._kinds[0].plan
    decodes.ran_eagerly(2, 0.2)
    chunk.ran_eagerly(30, 0.3)
    assert graphs.missed() == GraphShape("chunks", 40)
    graphs.record(graphs.missed())
    assert graphs.missed() == decode(2)
    graphs.record(decode(2))
    graphs.forward([token()], NEWEST)
    graphs.forward([token(token_ids=[1] * 21, table=range(8))], NEWEST)
    assert graphs.counts == GraphCounts(steps=2, recorded=2)
    assert graphs.row_counts == [1, 2, 4, 8]


class Capture:
    """Stands in for a CUDA graph: notes what is done while it records."""

    def __init__(self, fails=False):
        self.calls, self.fails = [], fails

    def capture_begin(self, pool, mode):
        self.calls.append(("begin", mode, gc.isenabled()))

    def capture_end(self):
        self.calls.append(("end",))
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize("collecting", [True, False])
def test_no_garbage_is_collected_while_a_graph_records(collecting):
    recorder = object.__new__(CudaRecorder)
    recorder._pool = None
    capture, ran = Capture(), []
    was = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        recorder._capture(capture, lambda: ran.append(gc.isenabled()))
        assert gc.isenabled() == collecting
        with pytest.raises(NotRecorded, match="not permitted"):
            recorder._capture(Capture(fails=True), lambda: None)
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if was else gc.disable)()
    assert capture.calls == [("begin", "thread_local", False), ("end",)]
    assert ran == [False]


def test_a_work_that_fails_while_it_is_recorded_still_ends_the_recording():
    recorder = object.__new__(CudaRecorder)
    recorder._pool = None
    capture = Capture()

    def work():
        raise RuntimeError("allocates")

    with pytest.raises(NotRecorded, match="allocates"):
        recorder._capture(capture, work)
    assert capture.calls[-1] == ("end",)
