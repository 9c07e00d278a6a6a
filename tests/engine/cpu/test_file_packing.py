"""Weights that are packed while torch is imported: the same bits, and the same refusals, as if they were packed after it."""

import mmap
import os
import subprocess
import sys
import threading

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.__main__ import serve
from engine.cpu import file_packing
from engine.cpu.backend import CpuBackend
from engine.cpu.file_packing import EarlyPacking, matrices, pack, tables
from engine.cpu.formats import choose_arithmetic
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.tensor_tree import map_tensors
from engine.ipc.failures import EXIT_MODEL
from engine.ipc.share import Share
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


def tensors_of(weights):
    found = []
    map_tensors(weights, found.append)
    return found


def early(source, config, threads=2):
    with EarlyPacking(config, GgufModel(source.path, config).blocks, threads) as packing:

        def assemble(reader, config):
            return assemble_packed(reader, config, take=packing.take)

        return load(source, config, "auto", assemble)


@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_packed_alike_before_and_after(source, threads):
    config = read_config(source)
    ours, theirs = (
        tensors_of(weights)
        for weights in (early(source, config, threads), load(source, config, "auto", assemble_packed))
    )
    assert len(ours) == len(theirs) > 20
    assert all(map(torch.equal, ours, theirs))


def test_the_matrices_of_a_layer_lie_together(source):
    config = read_config(source)
    weights = early(source, config)
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
    with (
        EarlyPacking(config, model.blocks, 2) as packing,
        pytest.raises(ModelError, match=r"m\.gguf is cut off within .*again"),
    ):
        for names in [
            *([name] for name in tables(config)),
            *(matrices(config, layer) for layer in range(config.layers)),
        ]:
            packing.take(names)


def started(source, **settings):
    recorder = Recorder()
    starter = Starter(Settings(kv_blocks=8, **settings), source, recorder)
    return serve(starter, recorder, threading.Event()), recorder.events


def test_an_engine_whose_file_is_cut_off_beside_the_import_of_torch_serves_nothing(source, monkeypatch):
    real = CpuBackend._early_packing

    def cut_first(backend):
        model = GgufModel(source.path, read_config(source))  # which finds nothing wrong
        cut(source.path)
        return EarlyPacking(read_config(source), model.blocks, 2)

    monkeypatch.setattr(CpuBackend, "_early_packing", cut_first)
    code, events = started(source)
    assert code == EXIT_MODEL and isinstance(events[-1], Failed) and "download it again" in events[-1].error
    assert not any(isinstance(event, Ready) for event in events)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("packing")]
    monkeypatch.setattr(CpuBackend, "_early_packing", real)
    monkeypatch.setattr("engine.cpu.backend.import_torch", lambda threads: pytest.fail("torch is imported for nothing"))
    code, events = started(source)
    assert code == EXIT_MODEL and "download it again" in events[-1].error


def test_a_defect_in_a_thread_ends_the_start_with_its_traceback(source, monkeypatch):
    def broken(*arguments):
        raise KeyError("within a thread")

    monkeypatch.setattr(file_packing, "pack_file", broken)
    with pytest.raises(KeyError, match="within a thread"):
        started(source)


def test_who_leaves_does_not_wait_for_what_has_not_begun(source, monkeypatch):
    config, begun, go_on = read_config(source), [], threading.Event()

    def slowly(names, blocks):
        begun.append(names)
        go_on.wait(60)
        return {}

    monkeypatch.setattr(file_packing, "pack", slowly)
    with pytest.raises(ZeroDivisionError), EarlyPacking(config, GgufModel(source.path, config).blocks, 1):
        threading.Timer(0.05, go_on.set).start()
        raise ZeroDivisionError
    assert len(begun) <= 1 < config.layers + len(tables(config))


class Startup:
    """Of an engine that has only to say whether it packs early."""

    def __init__(self, source, **settings):
        self.source, self.config, self.settings = source, read_config(source), Settings(block_size=16, **settings)
        self.tiers = ()
        self.phase = self.run = self.tell = None


@pytest.mark.parametrize(
    ("settings", "early"),
    [
        ({}, True),
        ({"load_format": "gguf"}, True),
        ({"load_format": "safetensors"}, False),
        ({"load_format": "dummy"}, False),
        ({"cpu_precision": "exact"}, False),
    ],
)
def test_what_is_packed_early(source, monkeypatch, settings, early):
    startup = Startup(source, **settings)
    backend = CpuBackend(startup, "for the test")
    backend._arithmetic = choose_arithmetic(startup.settings, startup.config)
    packing = backend._early_packing()
    assert (packing is not None) == early
    if packing is not None:
        with packing:
            assert len(packing.take(matrices(startup.config, 0))) == 7
    share = Share(engine="engine-0", engines=2, memory=2**30, cores=1, devices=[], weights=3)
    monkeypatch.setattr("engine.cpu.backend.own_share", lambda: share)
    assert backend._early_packing() is None, "those that engines share are packed by one of them"


def test_nothing_of_it_imports_torch():
    code = "import sys, engine.cpu.backend, engine.loading.gguf_model; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
