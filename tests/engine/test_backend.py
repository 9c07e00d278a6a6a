"""What every backend does alike: the first token is generated step by step, and a model that gives none is refused."""

import pytest
import torch

from configs.model.source import ModelError
from configs.settings import Settings
from engine import backend, start
from engine.backend import generate, import_torch
from engine.cgroups import Bound
from engine.device import StepLimits, step_limits
from engine.sequence import Sequence
from engine.start import cores_in_words, explained
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkPhase, ChunkResult, SequenceInit, StepResult


class Notes:
    """A worker that notes its steps and says 7, or `error` from step `fails` on."""

    def __init__(self, fails=None):
        self.steps, self.fails = [], fails

    def run(self, step):
        self.steps.append(step)
        failed = self.fails is not None and len(self.steps) > self.fails
        result = ChunkResult(
            request_id=step.chunks[0].request_id, **({"error": "NaN"} if failed else {"token_ids": [7]})
        )
        return StepResult(step_id=step.step_id, results=[result])


@pytest.mark.parametrize(("tokens", "prompt"), [(1, 1), (1, 4), (3, 2)])
def test_a_prompt_and_then_token_by_token(tokens, prompt):
    worker = Notes()
    generate(worker, SamplingParams(max_tokens=tokens, temperature=0.0), prompt)
    chunks = [step.chunks[0] for step in worker.steps]
    assert [(chunk.start, chunk.length) for chunk in chunks] == [(0, prompt)] + [
        (prompt + i, 1) for i in range(tokens - 1)
    ]
    assert [chunk.phase for chunk in chunks] == [ChunkPhase.PREFILL] + [ChunkPhase.DECODE] * (tokens - 1)
    assert all(chunk.samples == 1 and chunk.block_table == [0] for chunk in chunks)
    assert [len(step.new) for step in worker.steps] == [1] + [0] * (tokens - 1)
    assert [bool(step.retired) for step in worker.steps] == [False] * (tokens - 1) + [True], "the worker keeps nothing"


@pytest.mark.parametrize("fails", [0, 1])
def test_a_model_without_a_token_is_refused_with_its_reason(fails):
    with pytest.raises(ModelError, match="no token while it was warmed up: NaN"):
        generate(Notes(fails), SamplingParams(max_tokens=3, temperature=0.0), 2)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({}, (128, 64)),
        ({"max_step_tokens": 7}, (7, 64)),
        ({"max_running": 3}, (128, 3)),
        ({"max_step_tokens": 256, "max_running": 200}, (256, 200)),
    ],
)
def test_limits_of_a_step_are_the_settings_or_the_devices(given, limits):
    assert step_limits(Settings(**given), StepLimits(tokens=128, sequences=64)) == limits


def test_a_resumed_sequence_begins_with_the_output_it_has():
    init = SequenceInit(
        request_id="r", prompt_ids=[1, 2], generated_ids=[3], sampling=SamplingParams(max_tokens=9), adapter="a"
    )
    sequence = Sequence.from_init(init)
    assert (sequence.tokens, sequence.prompt_length, sequence.announced_length) == ([1, 2, 3], 2, 3)
    assert sequence.adapter == "a"
    sequence.tokens.append(4)
    assert sequence.announced_length == 3
    assert (init.prompt_ids, init.generated_ids) == ([1, 2], [3]), "the worker's tokens are a copy"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory while loading m"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            "lower --kv-blocks or --max-step-tokens",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out of memory while loading m"),
        (OSError(12, "Cannot allocate memory"), "out of memory while loading m"),
        (FileNotFoundError(2, "No such file", "w.gguf"), "cannot load m: .*w.gguf.*; check that its files are there"),
        (PermissionError(13, "Permission denied", "w.gguf"), "cannot load m: .*Permission denied"),
    ],
)
def test_what_the_system_refuses_is_a_sentence(error, words):
    with pytest.raises(ModelError, match=words) as refused, explained("m"):
        raise error
    assert refused.value.__cause__ is error
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("error", [ModelError("has said why"), ZeroDivisionError()])
def test_every_other_error_stays_as_it_is(error):
    with pytest.raises(type(error)) as raised, explained("m"):
        raise error
    assert raised.value is error


@pytest.mark.parametrize(("asked", "cores", "threads"), [(None, 2, 2), (None, 64, 8), (3, 2, 3)])
def test_no_more_threads_than_there_are_cores_to_use_unless_asked_for(monkeypatch, asked, cores, threads):
    taken = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    monkeypatch.setattr(backend, "usable_cores", lambda: Bound(cores, "cpu.max of /a"))
    import_torch(asked)
    assert taken == [threads]


def test_more_threads_than_cores_are_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(start, "usable_cores", lambda: Bound(2, "cpu.max of /a"))
    assert cores_in_words(None) == "2 (cpu.max of /a)"
    assert not caplog.records
    assert cores_in_words(16) == "2 (cpu.max of /a), 16 threads as --threads asks"
    assert "threads is 16, but there are only 2 cores to use (cpu.max of /a)" in caplog.text
