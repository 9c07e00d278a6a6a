"""Another kind of output: toy poolers, given from here to the workers of both devices."""

from contextlib import nullcontext

import pytest
import torch
import transformers

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.backend import Startup
from engine.cpu.backend import CpuBackend
from engine.models.registry import read_config
from engine.pooling import registry
from engine.pooling.pooler import NOT_FINITE, Pooler, by_kind
from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from tests.engine.gpu.test_worker import InAdvance, Logged, prompt
from tests.engine.gpu.tiny_gpu import cpu_worker, gpu_worker, one_layer

BLOCKS = 20
ALL = frozenset(OutputKind)


class LastRow(Pooler):
    """An embedding: the last token's hidden state, of length 1."""

    kind = OutputKind.VECTOR

    def rows(self, chunk, sequence):
        return int(chunk.start + chunk.length == sequence.prompt_length)

    def pool(self, hidden, chunk, sequence):
        return torch.nn.functional.normalize(hidden[0].float(), dim=0) if len(hidden) else None


class MeanOfAll(Pooler):
    """A score: the mean of all hidden states, which come with several chunks."""

    kind = OutputKind.SCORES

    def __init__(self):
        self.sums = {}

    def rows(self, chunk, sequence):
        return chunk.length

    def pool(self, hidden, chunk, sequence):
        before = self.sums.get(sequence.request_id, 0.0) if chunk.start else 0.0
        total = self.sums[sequence.request_id] = before + hidden.float().mean(1).sum(0, keepdim=True)
        return total / sequence.prompt_length if chunk.start + chunk.length == sequence.prompt_length else None

    def forget(self, request_id):
        self.sums.pop(request_id, None)


def pooled(name, ids, kind, **fields):
    return AddRequest(request_id=name, prompt_ids=ids, sampling=SamplingParams(max_tokens=0), produces=kind, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


@pytest.fixture(scope="module")
def hidden_states(folder):
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        return {length: model(torch.tensor([prompt(length)])).last_hidden_state[0] for length in (5, 21)}


def serve(engine, lengths):
    """Vectors and scores of prompts, beside a request that generates. A step holds 16 tokens."""
    engine.add("text", prompt(3), max_tokens=2, ignore_eos=True)
    for length in lengths:
        engine.submit(pooled(f"vector {length}", prompt(length), OutputKind.VECTOR))
        engine.submit(pooled(f"score {length}", prompt(length), OutputKind.SCORES))
    engine.drain()
    return engine


def check(engine, hidden_states, lengths, tolerance):
    for length in lengths:
        rows = hidden_states[length]
        vector, score = (engine.ends[f"{kind} {length}"].pooled for kind in ("vector", "score"))
        assert (vector.kind, score.kind) == (OutputKind.VECTOR, OutputKind.SCORES)
        want = torch.nn.functional.normalize(rows[-1], dim=0).tolist()
        assert vector.values == pytest.approx(want, abs=tolerance)
        assert score.values == pytest.approx([float(rows.mean())], abs=tolerance)


def test_a_pooler_on_the_cpu(folder, hidden_states):
    mean = MeanOfAll()
    engine = serve(Logged(*cpu_worker(folder, BLOCKS, poolers=[LastRow(), mean]), BLOCKS, produces=ALL), (5, 21))
    check(engine, hidden_states, (5, 21), 1e-5)
    alone = Logged(*cpu_worker(folder, BLOCKS), BLOCKS)
    alone.add("text", prompt(3), max_tokens=2, ignore_eos=True)
    alone.drain()
    assert engine.outputs["text"] == alone.outputs["text"]
    engine.worker.run(engine.scheduler.schedule(0.0))
    assert not mean.sums, "it was told who has ended"


def test_the_same_poolers_on_a_gpu(folder, hidden_states):
    engine = InAdvance(*gpu_worker(folder, BLOCKS, poolers=[LastRow(), MeanOfAll()]), BLOCKS, produces=ALL)
    check(serve(engine, (21,)), hidden_states, (21,), 1e-4)
    assert engine.ends["text"].finish_reason is FinishReason.LENGTH


def test_a_vector_that_is_not_finite_is_an_error_of_its_request_alone(folder):
    class Broken(LastRow):
        def pool(self, hidden, chunk, sequence):
            values = super().pool(hidden, chunk, sequence)
            return values / 0 if sequence.request_id == "broken" else values

    engine = Logged(*cpu_worker(folder, BLOCKS, poolers=[Broken()]), BLOCKS, produces=ALL)
    for name in ("broken", "whole"):
        engine.submit(pooled(name, prompt(5), OutputKind.VECTOR))
    engine.drain()
    assert (engine.ends["broken"].error, engine.ends["broken"].pooled) == (NOT_FINITE, None)
    assert len(engine.ends["whole"].pooled.values) == 32


def test_two_poolers_of_one_kind_are_refused():
    with pytest.raises(ValueError, match="LastRow cannot make vector: something else does already"):
        by_kind([LastRow(), LastRow()])


def test_a_backend_produces_what_its_poolers_make(tiny_model, monkeypatch):
    monkeypatch.setattr(registry, "standard_poolers", lambda config: [LastRow()])
    source = resolve_model(str(tiny_model("llama")[1]))
    startup = Startup(
        Settings(device="cpu", kv_blocks=8),
        source,
        read_config(source),
        lambda name: nullcontext(),
        lambda work: work(),
    )
    backend = CpuBackend(startup, "for the test")
    backend.load(backend.plan())
    assert backend.produces == {OutputKind.TOKENS, OutputKind.VECTOR}
