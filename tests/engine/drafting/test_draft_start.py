"""An engine that starts with a draft model, and where one is refused before anything is loaded."""

import json
import logging

import pytest
import transformers

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.cpu import backend
from engine.cpu.formats import Arithmetic
from engine.device import Device
from engine.start import Starter
from scheduler.types.messages import MemoryPlan, StartPhase
from tests.engine.test_start import Recorder
from tests.tiny_encoders import BERT


@pytest.fixture
def started(tiny_model):
    """Start an engine of a tiny model: what it sent, and the names of who guesses."""

    def start(draft, **settings):
        folder, recorder = str(tiny_model("llama")[1]), Recorder()
        given = Settings(kv_blocks=8, draft_model=draft and str(draft), **settings)
        starter = Starter(given, resolve_model(folder), recorder)
        try:
            starter.start()
            return recorder.events, starter._backend.drafter.name
        finally:
            starter.close()

    return start


def test_an_engine_starts_with_its_draft_model(started, tiny_model):
    folder = tiny_model("llama")[1]
    events, names = started(folder, device="cpu", speculation="draft")
    assert names == f"forced tokens of grammars, prompt lookup, draft model {folder.name}"
    phases = [event.name for event in events if isinstance(event, StartPhase)]
    assert phases.index("compare tokens") < phases.index("plan memory") < phases.index("load draft model")
    (plan,) = [event for event in events if isinstance(event, MemoryPlan)]
    assert plan.draft > 0 and plan.draft_kv_per_token == plan.kv_per_token


def test_without_one_nothing_is_said_of_it(started):
    events, names = started(None, device="cpu")
    assert "draft" not in names
    (plan,) = [event for event in events if isinstance(event, MemoryPlan)]
    assert (plan.draft, plan.draft_kv_per_token) == (0, 0)
    assert "compare tokens" not in [event.name for event in events if isinstance(event, StartPhase)]


def test_auto_leaves_it_out_where_guesses_change_roundings(started, tiny_model, monkeypatch, caplog):
    monkeypatch.setattr(backend, "choose_arithmetic", lambda settings, config: Arithmetic("exact", "for the test"))
    with caplog.at_level(logging.WARNING, "headrace.engine"):
        events, names = started(tiny_model("llama")[1], device="cpu")
    assert names == "forced tokens of grammars"
    assert "draft_model is set, but it is not used: for the test; set speculation draft to use it" in caplog.text
    assert all(event.draft == 0 for event in events if isinstance(event, MemoryPlan))


def test_on_a_gpu_it_is_refused(started, tiny_model, monkeypatch):
    monkeypatch.setattr("engine.start.choose_device", lambda settings: Device("cuda", "torch has a GPU"))
    with pytest.raises(
        ModelError, match=r"is not computed on a GPU yet \(torch has a GPU\): leave it out, or use --device cpu"
    ):
        started(tiny_model("llama")[1])


def test_an_encoder_has_nothing_to_guess(tmp_path):
    config = transformers.BertConfig(**BERT).to_dict() | {"architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    starter = Starter(Settings(draft_model="small.gguf", device="cpu"), resolve_model(str(tmp_path)), Recorder())
    try:
        with pytest.raises(ModelError, match=r"--draft-model small.gguf has nothing to guess: .* writes no text"):
            starter.start()
    finally:
        starter.close()
