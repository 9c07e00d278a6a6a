"""Starting an engine on what this machine cannot give: real refusals of the system, and defects injected."""

import json
import threading

import pytest

from configs.model import gguf_header
from configs.model.source import resolve_model
from configs.settings import Settings
from engine.__main__ import serve
from engine.cgroups import Bound
from engine.cpu import memory_plan
from engine.ipc.failures import EXIT_MODEL
from engine.start import Starter
from scheduler.types.messages import Failed
from tests.engine.loading.test_loading import write_gguf
from tests.tiny_models import TINY

BEYOND_ADDRESSES = 2**49  # bytes; no allocator can give this much, however generous the system


class Recorder:
    """Stands in for the engine's channel: keeps what is sent."""

    def __init__(self):
        self.events = []

    def send(self, event):
        self.events.append(event)

    def wake(self):
        pass

    def close(self):
        pass


@pytest.fixture
def failure(tmp_path, monkeypatch):
    """How the start of a dummy model, made with `changes` and served with settings, fails."""

    def start(changes, **settings):
        monkeypatch.setattr(memory_plan, "free_memory", lambda: Bound(2**62, "the test"))
        config = TINY["llama"].config().to_dict() | changes | {"architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        recorder = Recorder()
        starter = Starter(Settings(load_format="dummy", **settings), resolve_model(str(tmp_path)), recorder)
        code = serve(starter, recorder, threading.Event())
        assert code == EXIT_MODEL
        assert isinstance(recorder.events[-1], Failed)
        return recorder.events[-1].error

    return start


def test_weights_that_cannot_be_allocated_are_told_in_a_sentence(failure):
    error = failure({"vocab_size": BEYOND_ADDRESSES // (4 * 64)}, kv_blocks=8)
    assert error.startswith("out of memory while loading")
    assert "--kv-blocks" in error
    assert "\n" not in error


def test_a_pool_that_cannot_be_mapped_is_told_in_a_sentence(failure):
    error = failure({}, kv_blocks=BEYOND_ADDRESSES // 2**14)
    assert error.startswith("out of memory while loading")
    assert "\n" not in error


def test_a_file_that_is_gone_when_it_is_read_is_told_in_a_sentence(failure, monkeypatch):
    def gone(*_args):
        open("/nonexistent/model.gguf", "rb")  # noqa: SIM115

    monkeypatch.setattr("engine.loading.dummy.load_dummy", gone)
    assert "cannot load" in (error := failure({}, kv_blocks=8))
    assert "/nonexistent/model.gguf" in error


def test_engines_with_the_same_model_name_blocks_alike_wherever_it_lies(tmp_path):
    names = []
    for place, theta in (("here", 1e4), ("there", 1e4), ("other", 1e5)):
        rope = {"rope_type": "default", "rope_theta": theta}
        config = TINY["llama"].config().to_dict() | {"architectures": ["LlamaForCausalLM"], "rope_parameters": rope}
        (tmp_path / place).mkdir()
        (tmp_path / place / "config.json").write_text(json.dumps(config))
        settings = Settings(load_format="dummy", kv_blocks=8)
        loop, _ = Starter(settings, resolve_model(str(tmp_path / place)), Recorder()).start()
        names.append(loop._scheduler.config.fingerprint)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("defect", [RuntimeError("shape mismatch"), KeyError("name")])
def test_a_defect_keeps_its_traceback(failure, monkeypatch, defect):
    def broken(*_args):
        raise defect

    monkeypatch.setattr("engine.loading.dummy.load_dummy", broken)
    with pytest.raises(type(defect)):
        failure({}, kv_blocks=8)


def test_the_header_of_a_gguf_file_is_parsed_once(tmp_path, monkeypatch, tiny_model):
    parsed, parse = [], gguf_header.read_gguf_file
    monkeypatch.setattr(gguf_header, "read_gguf_file", lambda path, data: parsed.append(path) or parse(path, data))
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama")[0])
    starter = Starter(Settings(kv_blocks=8, cpu_precision="exact"), resolve_model(str(path)), Recorder())
    try:
        starter.start()
    finally:
        starter.close()
    assert len(parsed) == 1
