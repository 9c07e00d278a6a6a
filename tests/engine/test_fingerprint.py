"""The name of a model's KV: it depends on content alone, and on all that changes the numbers."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from configs.model.source import ModelSource
from configs.settings import Settings
from engine.cpu.formats import Arithmetic
from engine.fingerprint import answer_fingerprint, build, kv_fingerprint
from engine.gpu.formats import GpuArithmetic

MIB = 2**20


def gguf(path):
    return ModelSource(path=path, kind="gguf", name="any")


def named(source, library=None, **settings):
    precision = "fast" if library else "exact"
    return kv_fingerprint(source, Settings(**settings), Arithmetic(precision, "for the test", library))


@pytest.fixture
def model(tmp_path):
    """6 MiB that stand for a GGUF file: the name depends on bytes, not on what they mean."""
    path = tmp_path / "model.gguf"
    path.write_bytes(random.Random(0).randbytes(6 * MIB))
    return path


def test_the_same_content_has_the_same_name_everywhere(model, tmp_path):
    copy = tmp_path / "elsewhere" / "renamed.gguf"
    copy.parent.mkdir()
    shutil.copyfile(model, copy)
    os.utime(copy, (0, 0))
    assert named(gguf(copy)) == named(gguf(model))
    assert named(gguf(copy), load_format="gguf") == named(gguf(copy))


@pytest.mark.parametrize("where", [0, MIB // 2, MIB, 3 * MIB, 5 * MIB, 6 * MIB - 6 * MIB // 256])
def test_a_tensor_of_a_256th_of_the_file_is_noticed(model, where):
    before = named(gguf(model))
    with model.open("r+b") as file:
        file.seek(where)
        file.write(bytes(6 * MIB // 256))
    assert model.stat().st_size == 6 * MIB
    assert named(gguf(model)) != before


def test_the_length_counts(model):
    before = named(gguf(model))
    with model.open("ab") as file:
        file.write(b"\0")
    assert named(gguf(model)) != before


def test_other_roundings_are_another_format(model):
    libraries = [None, model.with_name("avx2-1.so"), model.with_name("avx2-2.so"), model.with_name("avx512-1.so")]
    assert len({named(gguf(model), library) for library in libraries}) == len(libraries)


def test_random_weights_are_another_model(model):
    assert named(gguf(model), load_format="dummy") != named(gguf(model))


def test_a_folder_is_its_config_and_all_its_shards(tmp_path):
    source = ModelSource(path=tmp_path, kind="hf", name="any")
    contents = {"config.json": json.dumps({"rope_theta": 1}), "a.safetensors": "1", "b.safetensors": "2"}
    names = set()
    for changed in (None, *contents):
        for name, text in contents.items():
            (tmp_path / name).write_text(text + ("changed" if name == changed else ""))
        names.add(named(source))
    assert len(names) == 4
    (tmp_path / "tokenizer.json").write_text("{}")
    assert named(source) in names


@dataclass
class Chosen:
    """A backend after `plan`."""

    kv_format: str
    build: str


def chosen(arithmetic, device=None, more=""):
    return Chosen(arithmetic.kv_format, build(device or arithmetic.name) + more)


def test_answers_bear_the_name_of_all_that_computes_them(model):
    gpu = GpuArithmetic("dense", torch.bfloat16)
    one, two = gpu.kv_format(1), gpu.kv_format(2)
    backends = [
        chosen(Arithmetic("exact", "as asked for")),
        chosen(Arithmetic("fast", "the best there is", model.with_name("avx2-1.so"))),
        chosen(Arithmetic("fast", "the best there is", model.with_name("avx512-1.so"))),
        Chosen(one, build("H200")),
        Chosen(one, build("L4")),
        Chosen(two, build("2 x H200")),
        Chosen(one, build("H200") + ", shared prefixes"),
        Chosen(GpuArithmetic("fp8", torch.bfloat16).kv_format(1), build("H200")),
    ]
    names = [answer_fingerprint(gguf(model), Settings(), backend) for backend in backends]
    assert len(set(names)) == len(names)
    why = Arithmetic("exact", "fp32 by torch: no kernels are built")  # chosen by itself, it computes the same
    assert answer_fingerprint(gguf(model), Settings(cpu_precision="exact"), chosen(why)) == names[0]
    model.write_bytes(b"another model")
    assert answer_fingerprint(gguf(model), Settings(), backends[0]) != names[0]


def test_a_build_is_the_same_in_every_process_and_names_versions():
    code = "from engine.fingerprint import build; print(build('cpu'))"
    said = {
        subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert said == {build("cpu") + "\n"}
    assert f"torch {torch.__version__.partition('+')[0]}" in build("cpu")
    assert "triton" not in build("cpu", ("headrace", "no-such-package"))


def test_changed_kernels_are_another_build(tmp_path, monkeypatch):
    import kernels

    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "__init__.py"))
    names = []
    for text in ("1", "2", "1"):
        (tmp_path / "kernel.cpp").write_text(text)
        names.append(build("cpu"))
    (tmp_path / "kernel.cpp").rename(tmp_path / "renamed.cpp")
    names.append(build("cpu"))
    assert names[0] == names[2] and len(set(names)) == 3
