"""A backend beside the CPU's and the GPU's: defined here, run by the real start, scheduler and loop."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.device import StepLimits
from engine.start import BACKENDS, Starter
from engine.worker import Worker
from scheduler.types.messages import (
    AddRequest,
    FinishReason,
    MemoryPlan,
    Output,
    Ready,
    Shutdown,
    StartPhase,
    StepOutputs,
)
from scheduler.types.output_kind import OutputKind, Pooled
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkResult, StepResult
from tests.tiny_models import TINY


class CountingPending:
    def __init__(self, result):
        self._result = result

    def result(self):
        return self._result


class CountingWorker:
    """Every token is its own position, modulo 50; two steps may be open."""

    depth = 2

    def __init__(self, blocks):
        self.blocks = torch.zeros(blocks, 64, dtype=torch.uint8)
        self.threads = set()
        self.chunks = []

    def submit(self, step):
        return CountingPending(self.run(step))

    def result(self, chunk):
        """A token after each of the last rows, as long as the drafts say which."""
        result = ChunkResult(request_id=chunk.request_id)
        first = chunk.start + chunk.length - chunk.samples + 1
        for place in range(chunk.samples):
            result.token_ids.append((first + place) % 50)
            if chunk.draft_ids[place : place + 1] != result.token_ids[-1:]:
                break
        return result

    def run(self, step):
        self.threads.add(threading.current_thread().name)
        self.chunks += step.chunks
        results = [self.result(chunk) for chunk in step.chunks]
        return StepResult(step_id=step.step_id, results=results, seconds=0.0)


class ToyBackend:
    name = "toy chip"
    limits = StepLimits(tokens=8, sequences=3)
    kv_format = "toy"
    build = "toy chip, no code"
    kv_element_bytes = 1
    produces = frozenset({OutputKind.TOKENS})
    adapters = MappingProxyType({})
    drafter = None
    preparation = None
    exact_drafts = True
    folder = None

    def __init__(self, startup, reason="for the test"):
        self.startup = startup
        self.reason = reason
        self.calls = []

    def plan(self):
        self.calls.append("plan")
        return MemoryPlan(
            weights=0, kv_per_token=4, arithmetic=self.reason, block_size=16, blocks=5, activations=0, available=1,
            max_model_len=64, context=64, concurrent=1.0,
        )  # fmt: skip

    def load(self, plan):
        self.calls.append("load")
        with self.startup.phase("draw the chip"):
            self.worker = CountingWorker(plan.blocks)
        return self.worker

    def warm_up(self):
        self.calls.append("warm up")
        self.startup.run(lambda: self.calls.append(threading.current_thread().name))

    def close(self):
        self.calls.append("close")


class Wire:
    """The engine's channel, in this process: it gives requests, and stops the engine when all have ended."""

    def __init__(self, *requests):
        self.waiting = list(requests)
        self.open = {request.request_id for request in requests}
        self.events = []

    def receive(self):
        waiting, self.waiting = self.waiting, []
        yield from waiting
        if not self.open - {output.request_id for output in self.outputs if output.finish_reason is not None}:
            yield Shutdown(reason="all requests have ended")

    @property
    def outputs(self) -> list[Output]:
        return [output for event in self.events if isinstance(event, StepOutputs) for output in event.each()]

    def send(self, event):
        self.events.append(event)

    def wake(self):
        pass

    def wait(self, seconds=None):
        pass


@pytest.fixture
def source(tmp_path):
    config = TINY["llama"].config().to_dict() | {"architectures": ["LlamaForCausalLM"], "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return resolve_model(str(tmp_path))


def test_a_backend_of_ones_own_serves_requests(source):
    sampling = SamplingParams(max_tokens=5, ignore_eos=True)
    wire = Wire(AddRequest(request_id="r", prompt_ids=[7] * 20, sampling=sampling))
    made = []
    starter = Starter(Settings(), source, wire, choose=lambda startup: made.append(ToyBackend(startup)) or made[0])
    loop, ready = starter.start()
    assert isinstance(ready, Ready) and (ready.device, ready.blocks, ready.vocab_size) == ("toy chip", 5, 50)
    loop.run()
    starter.close()
    (backend,) = made
    thread = backend.calls.pop(3)
    assert backend.calls == ["plan", "load", "warm up", "close"]
    assert backend.worker.threads == {thread} and thread.startswith("worker")
    tokens = [token for output in wire.outputs for token in output.token_ids]
    assert tokens == [20, 21, 22, 23, 24]
    assert wire.outputs[-1].finish_reason is FinishReason.LENGTH
    assert max(chunk.length for chunk in backend.worker.chunks) == backend.limits.tokens
    phases = [event.name for event in wire.events if isinstance(event, StartPhase)]
    assert phases == ["read headers", "draw the chip", "first token"]
    assert next(event for event in wire.events if isinstance(event, MemoryPlan)).arithmetic == "for the test"


@pytest.mark.parametrize(
    ("asked", "expected", "reason"),
    [
        ({}, [20, 21, 22], FinishReason.STOP),
        ({"min_tokens": 4}, [20, 21, 22, 23, 24], FinishReason.STOP),
        ({"min_tokens": 6}, [*range(20, 29)], FinishReason.LENGTH),
        ({"ignore_eos": True}, [*range(20, 29)], FinishReason.LENGTH),
    ],
    ids=str,
)
def test_every_end_that_a_folder_names_ends_an_answer(source, asked, expected, reason):
    added = [{"id": 22, "content": "<|im_end|>", "special": True}, {"id": 24, "content": "</s>", "special": False}]
    (source.path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    (source.path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    sampling = SamplingParams(max_tokens=9, **asked)
    wire = Wire(AddRequest(request_id="r", prompt_ids=[7] * 20, sampling=sampling))
    starter = Starter(Settings(), source, wire, choose=ToyBackend)
    loop, ready = starter.start()
    loop.run()
    starter.close()
    assert ready.eos_token_ids == [2, 24, 22]
    assert ready.ends == "2 (config.json); 24 </s> (tokenizer_config.json); 22 <|im_end|> (its spelling)"
    assert [token for output in wire.outputs for token in output.token_ids] == expected
    assert wire.outputs[-1].finish_reason is reason


def test_a_backend_is_found_by_the_kind_of_its_device(source, monkeypatch):
    monkeypatch.setitem(BACKENDS, "cpu", ToyBackend)
    wire = Wire(AddRequest(request_id="r", prompt_ids=[7], sampling=SamplingParams(max_tokens=1)))
    starter = Starter(Settings(device="cpu"), source, wire)
    assert starter.folder is None
    _, ready = starter.start()
    starter.close()
    assert ready.device == "toy chip"
    phases = [event.name for event in wire.events if isinstance(event, StartPhase)]
    assert phases[:2] == ["read headers", "choose device"]
    assert next(event for event in wire.events if isinstance(event, MemoryPlan)).arithmetic == "as --device cpu asks"


def test_a_worker_that_gives_no_token_is_refused_and_its_backend_closed(source):
    class Mute(CountingWorker):
        def run(self, step):
            result = super().run(step)
            for chunk in result.results:
                chunk.token_ids, chunk.error = [], "the chip is a drawing"
            return result

    class MuteBackend(ToyBackend):
        def load(self, plan) -> Worker:
            return Mute(plan.blocks)

    made = []
    starter = Starter(Settings(), source, Wire(), choose=lambda startup: made.append(MuteBackend(startup)) or made[0])
    with pytest.raises(ModelError, match="the model gave no token while it was warmed up: the chip is a drawing"):
        starter.start()
    starter.close()
    assert made[0].calls == ["plan", "close"]


class Next:
    """Guesses that positions go on."""

    name = "next position"
    reads_predictions = False

    def concerns(self, sampling):
        return True

    def waits(self, request_id, sampling, known):
        return True

    def propose(self, candidates):
        return [[(len(each.token_ids) + place) % 50 for place in range(min(3, each.most))] for each in candidates]

    def forget(self, request_id):
        pass

    def verified(self, request_id, proposed, accepted):
        pass

    def observe(self, rows, tokens, seconds):
        pass


class PoolingWorker(CountingWorker):
    def result(self, chunk):
        result = super().result(chunk)
        if chunk.request_id.startswith("vector"):
            result.pooled = Pooled(kind=OutputKind.VECTOR, values=[float(chunk.start + chunk.length)])
        return result


class AbleBackend(ToyBackend):
    """Its worker knows an adapter, makes vectors, and verifies what a drafter guesses."""

    produces = frozenset({OutputKind.TOKENS, OutputKind.VECTOR})
    adapters = MappingProxyType({"law": "1a2b"})
    drafter = Next()

    def load(self, plan):
        self.worker = PoolingWorker(plan.blocks)
        return self.worker


def test_what_a_backend_can_do_reaches_the_scheduler(source):
    tokens = SamplingParams(max_tokens=9, ignore_eos=True)
    vector = AddRequest(
        request_id="vector", prompt_ids=[7] * 6, sampling=SamplingParams(max_tokens=0), produces=OutputKind.VECTOR
    )
    wire = Wire(
        AddRequest(request_id="r", prompt_ids=[7] * 4, sampling=tokens, adapter="law"),
        AddRequest(request_id="unknown", prompt_ids=[7], sampling=tokens, adapter="prose"),
        vector,
        replace(vector, request_id="scores", produces=OutputKind.SCORES),
    )
    made = []
    settings = Settings(task=["generate", "embed"])
    starter = Starter(settings, source, wire, choose=lambda startup: made.append(AbleBackend(startup)) or made[0])
    loop, ready = starter.start()
    assert "|adapter law 1a2b|" in ready.computes
    loop.run()
    starter.close()
    ends = {output.request_id: output for output in wire.outputs if output.finish_reason is not None}
    assert [token for o in wire.outputs if o.request_id == "r" for token in o.token_ids] == list(range(4, 13))
    assert any(chunk.draft_ids for chunk in made[0].worker.chunks)
    assert ends["vector"].pooled == Pooled(kind=OutputKind.VECTOR, values=[6.0])
    assert ends["unknown"].error == "adapter 'prose' is not loaded (loaded: law)"
    assert ends["scores"].error == "this engine produces tokens, vector, the request asks for scores"


def test_a_drafter_over_a_cache_that_rejected_drafts_change_is_refused(source):
    class Inexact(AbleBackend):
        kv_format = "toy, float8 with scales"
        exact_drafts = False

    starter = Starter(Settings(), source, Wire(), choose=Inexact)
    with pytest.raises(
        ModelError, match=r"drafter next position cannot be used with an fp8 KV cache \(toy, float8 with scales\)"
    ):
        starter.start()
    starter.close()


def test_the_cpus_plan_needs_no_torch(source):
    """A start reports its plan a second before torch could be imported."""
    code = f"""
import sys
from contextlib import nullcontext
from pathlib import Path
from engine.models.registry import read_config
from configs.model.source import resolve_model
from configs.settings import Settings
from engine.backend import Startup
from engine.start import choose_backend
source = resolve_model({str(source.path)!r})
settings = Settings(device="cpu", kv_blocks=8, load_format="dummy")
startup = Startup(settings, source, read_config(source), lambda name: nullcontext(), lambda work: work())
print(choose_backend(startup).plan().blocks, "torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["8", "False"]
