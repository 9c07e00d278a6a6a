"""An engine on the GPU's worker, its kernels interpreted, gives what the CPU's exact path gives, token by token."""

import random

import numpy as np
import pytest
import torch

from engine.gpu.events import DeviceEvent
from engine.gpu.graph_policy import MOST_FAILURES, chunk_row_steps
from engine.gpu.graphs import NotRecorded
from engine.ipc.failures import DeviceLost
from scheduler.types.messages import FinishReason
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase, GraphCounts, SequenceInit, Step
from tests.engine.gpu.tiny_gpu import CONTEXT, RecordsAtOnce, cpu_worker, gpu_worker, never_records, one_layer
from tests.scheduler.sim import Engine

SIZE = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


def prompt(length, seed=0):
    return random.Random(seed).choices(range(3, 320), k=length)


class Logged(Engine):
    """Keeps log-probabilities, too."""

    def __init__(self, config, worker, blocks, **options):
        super().__init__(
            blocks=blocks, block_size=SIZE, worker=worker, eos=frozenset(config.eos_token_ids), context=CONTEXT,
            **({"max_step_tokens": 16, "max_running": 8} | options),
        )  # fmt: skip
        self.logprobs = {}

    def absorb(self, outputs):
        super().absorb(outputs)
        for output in outputs:
            self.logprobs.setdefault(output.request_id, []).extend(output.logprobs)


class InAdvance(Logged):
    """Gives the worker step N+1 before asking for the result of N, so that the device never waits."""

    def __init__(self, *args, **options):
        super().__init__(*args, depth=2, **options)


def staggered(engine):
    """Requests that come while others run, that share a prefix, that have prompts longer than a step."""
    shared = prompt(17)
    for index, length in enumerate((1, 8)):
        engine.add(f"r{index}", shared + prompt(length, seed=length), max_tokens=6, ignore_eos=True)
        engine.tick()
        engine.tick()
    engine.add("short", prompt(1, 9), max_tokens=4, ignore_eos=True)
    engine.drain()
    return engine.outputs


# Served requests are planned in advance.
EACH_KIND = pytest.mark.parametrize("kind", [pytest.param(Logged, marks=pytest.mark.long), InAdvance])


@EACH_KIND
def test_staggered_requests(folder, kind):
    want = staggered(Logged(*cpu_worker(folder, 30), 30))
    engine = kind(*gpu_worker(folder, 30), 30)
    assert staggered(engine) == want
    assert engine.scheduler.snapshot().prefix_hit_tokens > 0
    assert engine.worker._graphs.replayed >= 3


@EACH_KIND
def test_staggered_requests_whose_prompts_run_on_graphs(folder, kind):
    want = staggered(Logged(*cpu_worker(folder, 30), 30))
    engine = kind(*gpu_worker(folder, 30, chunks=RecordsAtOnce(16, steps=chunk_row_steps)), 30)
    assert staggered(engine) == want
    decodes, chunks = (kind.replays for kind in engine.worker._graphs._kinds)
    assert decodes and chunks


def test_a_search_copies_blocks_as_on_a_cpu(folder):
    want = searched(Logged(*cpu_worker(folder, 30), 30))
    engine = InAdvance(*gpu_worker(folder, 30), 30)
    assert searched(engine) == want
    assert engine.scheduler.snapshot().recomputed_tokens == 0


def searched(engine):
    engine.search("b", prompt(19), 2, max_tokens=3, ignore_eos=True)
    engine.drain()
    return engine.outputs


def test_without_graphs(folder):
    want = staggered(Logged(*cpu_worker(folder, 30), 30))
    engine = Logged(*gpu_worker(folder, 30, plan=never_records), 30)
    assert staggered(engine) == want
    assert engine.worker._graphs.replayed == 0


@EACH_KIND
def test_preempted_requests(folder, kind):

    def generate(engine):
        for index, length in enumerate((12, 11, 9)):
            engine.add(f"r{index}", prompt(length, index), max_tokens=7, ignore_eos=True)
        engine.drain()
        return engine.outputs

    want = generate(Logged(*cpu_worker(folder, 30), 30))
    engine = kind(*gpu_worker(folder, 4), 4, decode_watermark=0.0)
    assert generate(engine) == want
    stats = engine.scheduler.snapshot()
    assert stats.preemptions > 0
    assert stats.recomputed_tokens > 0


def test_an_end_that_is_seen_late_costs_a_row_and_no_token(folder):
    """With step N+1 given in advance, a request that ends in N has a row too many, which nobody sees."""
    engine = Logged(*cpu_worker(folder, 20), 20)
    engine.add("probe", prompt(9), max_tokens=6, ignore_eos=True)
    engine.drain()
    tokens = engine.outputs["probe"]
    ahead = InAdvance(*gpu_worker(folder, 20), 20)
    ahead.add("stops", prompt(9), max_tokens=6, ignore_eos=True, stop_token_ids=(tokens[3],))
    ahead.add("beside", prompt(4, 5), max_tokens=3, ignore_eos=True)
    ahead.drain()
    assert ahead.outputs["stops"] == tokens[: tokens.index(tokens[3]) + 1]
    assert ahead.ends["stops"].finish_reason is FinishReason.STOP
    ahead.add("again", prompt(9), max_tokens=6, ignore_eos=True)
    ahead.drain()
    assert ahead.outputs["again"] == tokens


GREEDY_EDITS = {
    "bias": {"logit_bias": {7: 100.0, 8: 99.0}},
    "penalties": {"logit_bias": {7: 40.0}, "presence_penalty": 1.5, "frequency_penalty": 2.0, "repetition_penalty": 1.3},
    "min_tokens": {"min_tokens": 4, "stop_token_ids": (11, 12), "logit_bias": {11: 100.0, 12: 99.0, 13: 98.0}},
    "bad_words": {"bad_words": ((7,), (9, 10)), "logit_bias": {7: 100.0, 9: 60.0, 10: 59.0}},
    "logprobs": {"logprobs": 3},
    "edited logprobs": {"logprobs": 0, "logit_bias": {7: 100.0}},
    "many logprobs": {"logprobs": 200},
    "prompt logprobs": {"prompt_logprobs": 2, "logprobs": 1},
}  # fmt: skip


WAITED_FOR = ("bad_words", "many logprobs")  # the steps before theirs, which therefore are in flight only without them


@pytest.mark.parametrize(
    ("kind", "left_out"), [pytest.param(Logged, (), marks=pytest.mark.long), (InAdvance, ()), (InAdvance, WAITED_FOR)]
)
def test_greedy_rows_with_edits_equal_the_host_samplers(folder, kind, left_out):
    """All in one batch: requests that the device draws for, and those that the host draws for."""

    def generate(engine):
        for index, (name, sampling) in enumerate(GREEDY_EDITS.items()):
            if name not in left_out:
                engine.add(name, prompt(3, index), max_tokens=5, **({"ignore_eos": True} | sampling))
        engine.drain()
        return engine

    want = generate(Logged(*cpu_worker(folder, 30), 30))
    got = generate(kind(*gpu_worker(folder, 30), 30))
    assert got.outputs == want.outputs
    assert got.prompt_logprobs == want.prompt_logprobs
    for name, entries in want.logprobs.items():
        for ours, theirs in zip(got.logprobs[name], entries, strict=True):
            assert (ours.token_id, ours.rank, len(ours.top)) == (theirs.token_id, theirs.rank, len(theirs.top))
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [token for token, _ in ours.top[:5]] == [token for token, _ in theirs.top[:5]]
            assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)


def test_seeded_rows_are_the_same_alone_and_in_any_batch(folder):
    settings = [
        {"seed": 1},
        {"seed": 2, "top_p": 0.9, "temperature": 1.5},
        {"seed": -3, "top_k": 5, "presence_penalty": 0.7},
        {"seed": 2**70, "min_p": 0.05, "logprobs": 2},
        {"seed": 5, "bad_words": ((7, 8),), "top_k": 50},
    ]

    def generate(which, kind=Logged, **options):
        engine = kind(*gpu_worker(folder, options.pop("blocks", 30)), 30, **options)
        for index in which:
            engine.add(
                f"r{index}",
                prompt(12, index),
                max_tokens=4,
                ignore_eos=True,
                **({"temperature": 1.0} | settings[index]),
            )
        engine.drain()
        return engine.outputs

    together = generate(range(5), InAdvance)
    assert generate([3, 1]) == {name: together[name] for name in ("r3", "r1")}
    assert len({tuple(tokens) for tokens in together.values()}) == 5


def test_a_request_whose_logits_are_not_finite_fails_alone(folder):
    engine = InAdvance(*gpu_worker(folder, 20), 20)
    poison = 5
    ids = [token for token in prompt(20) if token != poison]
    engine.worker._model._weights.embedding[poison] = float("nan")
    engine.add("bad", [*ids[:8], poison], max_tokens=5, ignore_eos=True)
    engine.add("masked", ids[:2], max_tokens=5, logit_bias=dict.fromkeys(range(320), float("-inf")))
    engine.add("good", ids[:3], max_tokens=3, ignore_eos=True, logit_bias={poison: -100.0})
    with np.errstate(all="ignore"):  # numpy warns where a GPU gives the intended infinity
        engine.drain()
    assert engine.ends["bad"].finish_reason is engine.ends["masked"].finish_reason is FinishReason.ERROR
    assert "not finite" in engine.ends["bad"].error
    assert "mask the whole vocabulary" in engine.ends["masked"].error
    assert len(engine.outputs["good"]) == 3


def test_padding_rows_write_into_nobodys_blocks(folder):
    """Three sequences on a graph of four rows, over a pool of NaN: only the places of their tokens are written."""
    engines = [Logged(*cpu_worker(folder, 30), 30), Logged(*gpu_worker(folder, 30), 30)]
    for engine in engines:
        for index in range(3):
            engine.add(f"r{index}", prompt(5, index), max_tokens=6, ignore_eos=True)
    engine = engines[1]
    while engine.worker.replayed < 2:
        engine.tick()
    storage = engine.worker._model.pool.storage
    written = (~storage.isnan()).all(dim=5).all(dim=3).all(dim=2).all(dim=1)  # [blocks, positions]
    touched = (~storage.isnan()).any(dim=5).any(dim=3).any(dim=2).any(dim=1)
    theirs = {
        (request.block_table[position // SIZE], position % SIZE)
        for request in engine.scheduler._table.running.values()
        for position in range(len(request.tokens) - 1)
    }
    assert theirs == set(map(tuple, written.nonzero().tolist())) == set(map(tuple, touched.nonzero().tolist()))
    for each in engines:
        each.drain()
    assert engines[0].outputs == engines[1].outputs


def test_nothing_is_kept_of_requests_that_ended(folder):
    engine = InAdvance(*gpu_worker(folder, 30), 30)
    for index in range(4):
        engine.add(f"r{index}", prompt(3, index), max_tokens=3, presence_penalty=0.5, bad_words=((7, 8),) * (index % 2))
    for _ in range(3):
        engine.tick()
    engine.abort("r2")
    engine.drain()
    worker = engine.worker
    worker.run(Step(step_id=10**6, chunks=[], retired=engine.scheduler.schedule(0.0).retired))
    assert (worker._members, len(worker._free)) == ({}, len(worker._newest))
    assert len(worker._device_sampler._counts._free) == len(worker._device_sampler._counts.table)
    assert not worker._pending


def test_more_sequences_than_there_were_places_for(folder, monkeypatch):
    monkeypatch.setattr("engine.gpu.worker._FIRST_PLACES", 2)
    monkeypatch.setattr("engine.gpu.sampler._FIRST_SLOTS", 1)

    def generate(engine):
        for index in range(3):
            engine.add(f"r{index}", prompt(3, index), max_tokens=3, ignore_eos=True, frequency_penalty=1.0)
        engine.drain()
        return engine.outputs

    assert generate(Logged(*gpu_worker(folder, 20), 20)) == generate(Logged(*cpu_worker(folder, 20), 20))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), NotRecorded("broken off")])
def test_graphs_that_do_not_fit_are_left_out(folder, error, caplog):
    config, worker = gpu_worker(folder, 30, plan=RecordsAtOnce)

    def full(prepare, work):
        raise error

    worker._graphs._recorder.record = full
    engine = Logged(config, worker, 30)
    engine.add("r", prompt(3), max_tokens=4, ignore_eos=True)
    engine.drain()
    assert len(engine.outputs["r"]) == 4
    assert worker._graphs.replayed == 0
    assert worker.graph_counts == GraphCounts(failed=MOST_FAILURES)
    assert [str(error) in record.message for record in caplog.records] == [True] * MOST_FAILURES + [False]


class Broken:
    """A device that refuses everything, as CUDA does after some errors."""

    def __init__(self, device):
        pass

    def wait(self):
        raise torch.AcceleratorError("illegal access")


@pytest.mark.parametrize(
    ("event", "told"), [(Broken, DeviceLost), (DeviceEvent, RuntimeError)], ids=["the device fails", "a step fails"]
)
def test_a_device_that_fails_is_told_from_a_step_that_does(folder, monkeypatch, event, told):
    """Each launcher has its own words for a lost device, so the device itself is asked."""

    def fails(*_):
        raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    _, worker = gpu_worker(folder, 30)
    monkeypatch.setattr("engine.gpu.worker.DeviceEvent", event)
    monkeypatch.setattr(worker._graphs, "forward", fails)
    new = SequenceInit(request_id="r", prompt_ids=[3], sampling=SamplingParams(max_tokens=1))
    chunk = Chunk(request_id="r", start=0, length=1, block_table=[0], phase=ChunkPhase.PREFILL, samples=1)
    with pytest.raises(told, match="Triton Error") as caught:
        worker.run(Step(step_id=0, chunks=[chunk], new=[new]))
    assert type(caught.value) is told
