"""What is told of weights that are being read, and that they are not kept in memory a second time."""

import mmap
import threading
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.weights import load_weights
from engine.loading import load
from engine.loading.gguf import load_gguf
from engine.models.registry import read_config
from engine.start import Starter
from scheduler.types.messages import StartPhase, WeightsRead
from tests.engine.loading.test_loading import write_gguf
from tests.engine.test_start import Recorder
from tests.tiny_models import Tiny, made


@pytest.fixture
def path(tiny_model, tmp_path):
    return write_gguf(tmp_path / "m.gguf", tiny_model("llama")[0], Kind.Q8_0)


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_each_tensor_brings_it_further_and_the_last_one_to_the_end(path, load_format):
    source = resolve_model(str(path))
    config, told, threads = read_config(source), [], set()

    def tell(part):
        told.append(part)
        threads.add(threading.get_ident())

    quiet = load(source, config, load_format, assemble_packed)
    weights = load(source, config, load_format, assemble_packed, tell)
    assert torch.equal(weights.layers[0].down.records, quiet.layers[0].down.records)
    assert told == sorted(told) and 0 < told[0] < told[-1] == 1 and len(told) > 20
    assert threading.get_ident() not in threads or len(threads) > 1
    told.clear()
    load_weights(source, config, load_format, tell=tell)
    assert told == sorted(told) and told[-1] == 1


def test_an_engine_tells_its_server_now_and_then(path, monkeypatch):
    def events():
        recorder = Recorder()
        starter = Starter(Settings(kv_blocks=8, cpu_precision="exact"), resolve_model(str(path)), recorder)
        try:
            starter.start()
        finally:
            starter.close()
        return recorder.events

    monkeypatch.setattr("engine.start._TOLD_SECONDS", 0.0)
    all_of_them = events()
    parts = [event.part for event in all_of_them if isinstance(event, WeightsRead)]
    assert parts == sorted(parts) and parts[-1] == 1
    last = max(i for i, event in enumerate(all_of_them) if isinstance(event, WeightsRead))
    names = [event.name for event in all_of_them[last:] if isinstance(event, StartPhase)]
    assert names[0] == "load weights"
    monkeypatch.setattr("engine.start._TOLD_SECONDS", 1e9)
    assert len([event for event in events() if isinstance(event, WeightsRead)]) == 1


def mapped_bytes(path):
    """Of the file at `path`, in this process's memory."""
    found = 0
    for part in Path("/proc/self/smaps").read_text(encoding="utf-8").split("VmFlags")[:-1]:
        if str(path) in part:
            found += 1024 * int(part.partition("Rss:")[2].split()[0])
    return found


def test_what_is_packed_leaves_memory(tmp_path):
    """While the file is still mapped: of each matrix no more than the pages that it shares with others is left."""
    model = made(Tiny("Llama", {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 2}), 1)
    path = write_gguf(tmp_path / "m.gguf", model, Kind.Q8_0)
    source, size = resolve_model(str(path)), path.stat().st_size
    assert size > 100 * mmap.PAGESIZE
    held = {}

    def assemble(reader, config):
        read = [reader.groups(name) for name, shape in reader.shapes.items() if len(shape) == 2]
        held["read"] = sum(int(rows.sum()) for rows in read) and mapped_bytes(path)
        packed = assemble_packed(reader, config)
        held["packed"] = mapped_bytes(path)
        return packed, [torch.equal(reader.groups("model.embed_tokens.weight"), read[0])]

    packed, (same,) = load_gguf(source.path, read_config(source), assemble)
    assert same  # what has left comes back from the file when it is asked for
    assert held["read"] > 0.9 * size
    assert held["packed"] < 0.35 * size
    assert packed.embedding.outputs == 320
