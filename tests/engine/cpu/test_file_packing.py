"""Weights on their way from a file into tiles: a layer lies together, and a file that ends too early is refused."""

import mmap
import os
import threading

import pytest
from gguf import GGMLQuantizationType as Kind

from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.__main__ import serve
from engine.cpu import file_packing
from engine.cpu.file_packing import matrices, pack, tables
from engine.cpu.packed_weights import assemble_packed
from engine.ipc.failures import EXIT_MODEL
from engine.loading import load
from engine.loading.gguf_model import GgufModel
from engine.models.registry import read_config
from engine.start import Starter
from kernels.cpu.build import build, compiler
from kernels.cpu.variants import supported
from scheduler.types.messages import Failed, Ready
from tests.engine.loading.test_loading import write_gguf
from tests.engine.test_start import Recorder

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")


@pytest.fixture(scope="module", autouse=True)
def built():
    build(supported()[:1])


@pytest.fixture(params=["llama", "qwen2"])
def source(request, tiny_model, tmp_path):
    """llama's rows of q and k are in llama.cpp's order, qwen2's are not."""
    return resolve_model(str(write_gguf(tmp_path / "m.gguf", tiny_model(request.param)[0], Kind.Q8_0)))


def packed(source):
    return load(source, read_config(source), "auto", assemble_packed)


def test_the_matrices_of_a_layer_lie_together(source):
    weights = packed(source)
    layer = weights.layers[0]
    starts = [
        matrix.records.data_ptr() for matrix in (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    ]
    assert starts == sorted(starts) and starts[0] % mmap.PAGESIZE == 0 and all(start % 64 == 0 for start in starts)
    end = layer.down.records.data_ptr() + layer.down.records.nbytes
    assert end - starts[0] < 7 * 64 + sum(getattr(layer, role).records.nbytes for role in file_packing.MATRICES)


def test_what_the_kernels_do_not_know_is_left_to_the_reader(tiny_model, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", tiny_model("llama")[0], Kind.F16)
    config = read_config(resolve_model(str(path)))
    assert pack([*tables(config), *matrices(config, 0)], GgufModel(path, config).blocks) == {}


def cut(path):
    """End the file within the last matrix; its header, and the size that has been looked at, are as before."""
    last = max(read_gguf_header(path).tensors.values(), key=lambda info: info.offset * (len(info.shape) == 2))
    os.truncate(path, last.offset + 10)


def test_a_file_that_is_cut_off_while_it_is_packed_is_refused(source):
    config = read_config(source)
    model = GgufModel(source.path, config)
    cut(source.path)
    with pytest.raises(ModelError, match=r"m\.gguf is cut off within .*again"):
        for names in [*([name] for name in tables(config)), *(matrices(config, i) for i in range(config.layers))]:
            pack(names, model.blocks)


def started(source, **settings):
    recorder = Recorder()
    starter = Starter(Settings(kv_blocks=8, **settings), source, recorder)
    return serve(starter, recorder, threading.Event()), recorder.events


def test_an_engine_whose_file_is_cut_off_while_it_packs_serves_nothing(source, monkeypatch):
    def cut_first(names, blocks):
        cut(source.path)
        return pack(names, blocks)

    monkeypatch.setattr("engine.cpu.packed_weights.pack", cut_first)
    code, events = started(source)
    assert code == EXIT_MODEL and isinstance(events[-1], Failed) and "download it again" in events[-1].error
    assert not any(isinstance(event, Ready) for event in events)


def test_a_defect_in_a_thread_ends_the_start_with_its_traceback(source, monkeypatch):
    def broken(*arguments):
        raise KeyError("within a thread")

    monkeypatch.setattr(file_packing, "pack_file", broken)
    with pytest.raises(KeyError, match="within a thread"):
        started(source)
