"""Steps with chunks on graphs: the model itself over their buffers, and what the host launches."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engine.gpu.graph_policy import GraphPlan, GraphShape, chunk_row_steps
from engine.gpu.graphs import EagerRecorder, StepGraphs
from kernels.gpu.attention import chunk_work
from tests.engine.bench.launcher import VIEWS_AND_NEW
from tests.engine.gpu.cases import SIZE, chunk, gpu_model, prompt
from tests.engine.gpu.tiny_gpu import one_layer

ROWS = (16, 40)
NEWEST = torch.zeros(4, dtype=torch.int64)
TABLES = [list(range(first, first + 10)) for first in (0, 10, 20, 30)]


def graphs_of(model, recorder=None):
    """Steps with chunks have graphs of 16 and of 40 rows."""
    chunks = GraphPlan(40, steps=lambda _: list(ROWS))
    graphs = StepGraphs(model, GraphPlan(8), recorder or EagerRecorder(), torch.float32, chunks=chunks)
    for rows in reversed(ROWS):
        graphs.record(GraphShape("chunks", rows))
    return graphs


def steps(vocab):
    """Prompts of which one is long, in pieces beside single tokens, in any order; the last step has two chunks and a token."""
    ids = [prompt(vocab, length, length) for length in (150, 30, 20, 9)]
    for start in range(0, 111, 37):
        yield [chunk(ids[0], start, start + 37, TABLES[0], wanted=0)]
    yield [chunk(ids[1], 0, 29, TABLES[1], wanted=1)]
    yield [chunk(ids[1], 29, 30, TABLES[1], wanted=1), chunk(ids[0], 111, 126, TABLES[0], wanted=0)]
    yield [
        chunk(ids[2], 0, 19, TABLES[2], wanted=3),
        chunk(ids[1], 20, 21, TABLES[1], wanted=1),
        chunk(ids[0], 126, 140, TABLES[0], wanted=1),
    ]
    yield [chunk(ids[3], 0, 3, TABLES[3], wanted=1), chunk(ids[0], 140, 141, TABLES[0], wanted=1)]


@pytest.mark.long  # tests/engine/gpu/test_worker.py serves requests on such graphs in less
@pytest.mark.parametrize(
    ("name", "fp8"), [("one-layer", False), ("llama", False), ("mistral-sliding", False), ("llama", True)]
)
def test_a_step_on_a_graph_gives_what_it_gives_without(tiny_model, name, fp8, monkeypatch, tmp_path):
    """And leaves the same keys and values. Chunks on many keys are split: parts of 32 keys stand for long ones."""
    monkeypatch.setattr(chunk_work, "SHORTEST", 32)
    monkeypatch.setattr(chunk_work, "_STEP", 16)
    monkeypatch.setattr(chunk_work, "FILLED", 4)
    folder = one_layer(tmp_path) if name == "one-layer" else tiny_model(name)[1]
    one, other = (gpu_model(folder, fp8_kv=fp8) for _ in range(2))
    for model in (one, other):
        model.pool.memory.zero_()
    graphs, taken = graphs_of(one), list(steps(one.config.vocab_size))
    for inputs in taken:
        found, wanted = graphs.forward(inputs, NEWEST).clone(), other.forward(inputs)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert graphs.replayed == len(taken)
    if not fp8:
        torch.testing.assert_close(one.pool.storage, other.pool.storage, atol=1e-5, rtol=1e-5)
    assert not graphs._kinds[1].inputs._arrived.any()
    assert one.pool.block_size == SIZE


class Launches(TorchDispatchMode):
    """Names of torch's functions that launch something on a GPU: those that give new numbers."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        name = function.__name__.partition(".")[0]
        if name not in VIEWS_AND_NEW | {"zeros", "zero_", "fill_"}:  # the host's memory is made anew
            self.names.append(name)
        return found


class Silent:
    """Records graphs of which nothing is launched, so that what is launched is the host's."""

    def record(self, prepare, work):
        prepare()
        return lambda: None


def test_the_host_launches_as_much_for_a_graph_whatever_the_step(tiny_model):
    """Not a kernel of a layer: a copy, and what fills in ids."""
    model = gpu_model(tiny_model("llama")[1])
    computed = []
    model.compute = lambda *arguments: computed.append(arguments)
    graphs = graphs_of(model, Silent())
    counts = []
    for inputs in steps(model.config.vocab_size):
        with Launches() as launched:
            graphs.forward(inputs, NEWEST)
        counts.append(launched.names)
    assert not computed
    assert all(names == counts[0] for names in counts)
    assert counts[0] == ["copy_", "lt", "clamp", "index", "where", "copy_"]


def test_rows_of_graphs_with_chunks():
    assert chunk_row_steps(2048) == [16, 32, *range(64, 513, 64)]
    assert chunk_row_steps(100) == [16, 32, 64, 100]
    assert chunk_row_steps(16) == [16]
    assert chunk_row_steps(5) == [5]
