"""The name of a model's KV: of content alone, and of all that changes the numbers."""

import json
import os
import random
import shutil

import pytest

from configs.model_source import ModelSource
from configs.settings import Settings
from engine.fingerprint import kv_fingerprint

MIB = 2**20


def gguf(path):
    return ModelSource(path=path, kind="gguf", name="any")


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
    assert kv_fingerprint(gguf(copy), Settings()) == kv_fingerprint(gguf(model), Settings())
    assert kv_fingerprint(gguf(copy), Settings(load_format="gguf")) == kv_fingerprint(gguf(copy), Settings())


@pytest.mark.parametrize("where", [0, MIB // 2, MIB, 3 * MIB, 5 * MIB, 6 * MIB - 6 * MIB // 256])
def test_a_tensor_of_a_256th_of_the_file_is_noticed(model, where):
    before = kv_fingerprint(gguf(model), Settings())
    with model.open("r+b") as file:
        file.seek(where)
        file.write(bytes(6 * MIB // 256))
    assert model.stat().st_size == 6 * MIB
    assert kv_fingerprint(gguf(model), Settings()) != before


def test_the_length_counts(model):
    before = kv_fingerprint(gguf(model), Settings())
    with model.open("ab") as file:
        file.write(b"\0")
    assert kv_fingerprint(gguf(model), Settings()) != before


def test_random_weights_are_another_model(model):
    assert kv_fingerprint(gguf(model), Settings(load_format="dummy")) != kv_fingerprint(gguf(model), Settings())


def test_a_folder_is_its_config_and_all_its_shards(tmp_path):
    source = ModelSource(path=tmp_path, kind="hf", name="any")
    contents = {"config.json": json.dumps({"rope_theta": 1}), "a.safetensors": "1", "b.safetensors": "2"}
    names = set()
    for changed in (None, *contents):
        for name, text in contents.items():
            (tmp_path / name).write_text(text + ("changed" if name == changed else ""))
        names.add(kv_fingerprint(source, Settings()))
    assert len(names) == 4
    (tmp_path / "tokenizer.json").write_text("{}")
    assert kv_fingerprint(source, Settings()) in names
