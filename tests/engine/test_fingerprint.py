"""The name of a model's KV: it depends on content alone, and on all that changes the numbers."""

import json
import mmap
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.model.config import EndToken, LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from configs.model.gguf_header import read_gguf_header
from configs.model.safetensors_header import read_safetensors
from configs.model.scales import Scales
from configs.model.source import ModelError, resolve_model
from configs.model.stored_tensor import StoredTensor
from configs.settings import Settings
from engine import fingerprint
from engine.cpu.formats import Arithmetic
from engine.fingerprint import build, fingerprints
from engine.gpu.formats import GpuArithmetic
from engine.loading.gguf_tensors import gguf_tensors
from engine.models.registry import read_config
from tests import tiny_models
from tests.engine.loading.test_loading import write_gguf


@dataclass
class Chosen:
    """A backend after `plan`."""

    kv_format: str
    build: str
    adapters: dict[str, str] = field(default_factory=dict)


def chosen(arithmetic, device=None, more=""):
    return Chosen(arithmetic.kv_format, build(device or arithmetic.name) + more)


EXACT = chosen(Arithmetic("exact", "for the test"))


def names_of(path, config=None, backend=EXACT, **settings):
    source = resolve_model(str(path))
    return fingerprints(source, config or read_config(source), Settings(**settings), backend)


def named(path, config=None, **settings):
    return names_of(path, config, **settings).kv


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model with every kind of tensor, some of them large, as a folder and as a GGUF file; nobody writes to them."""
    changes = {"attention_bias": True, "mlp_bias": True, "hidden_size": 256, "intermediate_size": 512}
    model = tiny_models.made(tiny_models.Tiny("Llama", changes | {"num_hidden_layers": 1}), 7)
    folder = tiny_models.save(model, tmp_path_factory.mktemp("folder"))
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, model, finish=lambda writer: writer.add_tensor("rope_freqs.weight", factors))
    return {"hf": folder, "gguf": path}


@pytest.fixture(params=["hf", "gguf"])
def model(request, models, tmp_path):
    """A copy of one of them to change."""
    copy = tmp_path / "copy" if request.param == "hf" else tmp_path / "copy.gguf"
    (shutil.copytree if request.param == "hf" else shutil.copyfile)(models[request.param], copy)
    return copy


def tensors_of(path):
    return read_safetensors(path) if path.is_dir() else gguf_tensors(read_gguf_header(path))


def flipped(tensor, at):
    """Flip the lowest bit of one byte of a tensor, in its file."""
    with tensor.path.open("r+b") as file:
        file.seek(tensor.offset + at)
        value = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([value ^ 1]))


def test_one_value_of_any_tensor_makes_another_model(model):
    """Anywhere: in what is hashed whole (norms, biases, rotary factors, small matrices), at samples of a large one and between."""
    before, seen = named(model), {"large": 0, "small": 0}
    for tensor in tensors_of(model).values():
        large = tensor.size > 2**16
        seen["large" if large else "small"] += 1
        for at in (0, 1100, tensor.size // 2, tensor.size - 1100, tensor.size - 1) if large else (0, tensor.size - 1):
            flipped(tensor, at)
            assert named(model) != before, (tensor.name, at)
            flipped(tensor, at)
    assert named(model) == before
    assert min(seen.values()) >= 7


def test_rows_of_a_large_matrix_that_change_places_make_another_model(models, tmp_path):
    """Of 1 KiB, 20 rows apart: each word stays in its place in a page. Between two samples."""
    copy = tmp_path / "copy"
    shutil.copytree(models["hf"], copy)
    before = named(copy)
    matrix = read_safetensors(copy)["model.embed_tokens.weight"]
    assert matrix.size == 320 * 1024
    with matrix.path.open("r+b") as file:
        data = mmap.mmap(file.fileno(), 0)
        one, other = (slice(at, at + 1024) for at in (matrix.offset + 2048, matrix.offset + 2048 + 20 * 1024))
        data[one], data[other] = data[other], data[one]
        data.close()
    assert named(copy) != before


@pytest.mark.parametrize("pages", [1, 127, 128, 129, 300])
def test_pages_are_added_up_whatever_is_read_at_once(tmp_path, pages):
    """Against numbers of Python's, which do not overflow."""
    data = np.random.default_rng(pages).integers(0, 256, 100 + 4096 * pages + 11, dtype=np.uint8).tobytes()
    path = tmp_path / "data"
    path.write_bytes(data)
    words = np.frombuffer(data, "<u8", 512 * pages, 100).reshape(pages, 512).astype(object)
    expected = [sum((2 * page + 1) * int(word) for page, word in enumerate(column)) % 2**64 for column in words.T]
    with path.open("rb") as file:
        sums = fingerprint._sums(file.fileno(), StoredTensor("t", path, "F32", (1,), 100, len(data) - 100))
    assert sums == np.array(expected, "<u8").tobytes() + data[-11:]


@pytest.mark.parametrize("left", [0, 5000, 3 * 4096, 99_999])
def test_a_file_that_is_cut_short_after_its_header_was_checked_is_named(tmp_path, left):
    """Within a sample, within the pages that are added up, between two pages, in the last bytes."""
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(left))
    tensor = StoredTensor("blk.0.ffn_up.weight", path, "F32", (25_000,), 0, 100_000)
    with pytest.raises(ModelError, match=r"model\.gguf ends within 'blk\.0\.ffn_up\.weight'"):
        list(fingerprint._contents([tensor]))


@pytest.mark.parametrize("summed", [0, 2**30])
def test_a_model_that_is_named_does_not_enter_this_processs_memory(models, monkeypatch, summed):
    monkeypatch.setattr(fingerprint, "_SUMMED", summed)
    pieces = 0
    for _ in fingerprint._contents(tensors_of(models["gguf"]).values()):
        pieces += 1
        assert str(models["gguf"]) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    assert pieces > 40


def test_of_a_model_of_gigabytes_a_31st_of_any_tensor_is_noticed_and_a_value_between_samples_is_not(model, monkeypatch):
    """What sampling promises, and what it does not."""
    monkeypatch.setattr(fingerprint, "_SUMMED", 0)
    before = named(model)
    largest = max(tensors_of(model).values(), key=lambda tensor: tensor.size)
    stretch = largest.size // 31 + 1
    for start in range(0, largest.size - stretch, stretch // 3):
        with largest.path.open("r+b") as file:
            file.seek(largest.offset + start)
            kept = file.read(stretch)
            file.seek(largest.offset + start)
            file.write(bytes(stretch))
            file.flush()
            assert named(model) != before, start
            file.seek(largest.offset + start)
            file.write(kept)
    for at in (0, 1023, largest.size - 1024, largest.size - 1):
        flipped(largest, at)
        assert named(model) != before, at
        flipped(largest, at)
    flipped(largest, 1024)
    assert named(model) == before


def test_the_same_content_has_the_same_name_everywhere(models, tmp_path):
    copy = tmp_path / "elsewhere" / "renamed.gguf"
    copy.parent.mkdir()
    shutil.copyfile(models["gguf"], copy)
    os.utime(copy, (0, 0))
    assert named(copy) == named(models["gguf"]) == named(copy, load_format="gguf")
    sharded = shutil.copytree(models["hf"], tmp_path / "shards")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    places = {name: f"{number % 3}.safetensors" for number, name in enumerate(tensors)}
    for shard in set(places.values()):
        save_file({name: tensors[name] for name, place in places.items() if place == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert named(sharded) == named(models["hf"])


def test_a_tensor_of_another_name_or_type_is_another_model(models, tmp_path):
    """Two norms that change places, and fp32 weights that bf16 holds as well."""
    names = {named(models["hf"])}
    for number, change in enumerate((swapped, narrowed)):
        folder = shutil.copytree(models["hf"], tmp_path / str(number))
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        names.add(named(folder))
    assert len(names) == 3


def swapped(tensors):
    one, two = (f"model.layers.0.{name}.weight" for name in ("input_layernorm", "post_attention_layernorm"))
    tensors[one], tensors[two] = tensors[two].clone(), tensors[one].clone()


def narrowed(tensors):
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.bfloat16)


def test_texts_and_lengths_do_not_change_the_kv_of_ids(models, tmp_path):
    folder = shutil.copytree(models["hf"], tmp_path / "texts")
    raw = json.loads((folder / "config.json").read_text())
    changes = {"max_position_embeddings": 4096, "eos_token_id": [5], "bos_token_id": 4, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(raw | changes | {"use_cache": False}))
    (folder / "tokenizer.json").write_text("{}")
    assert named(folder) == named(models["hf"])


OTHERS = {
    "rms_norm_eps": [1e-5, 1e-6],
    "rope_theta": [5e5],
    "rope_scaling": [
        LinearScaling(2.0),
        LinearScaling(4.0),
        Llama3Scaling(2.0, 1.0, 4.0, 64),
        YarnScaling(2.0, 64, 32.0, 1.0, 1.0, True),
        YarnScaling(2.0, 64, 32.0, 1.0, 1.0, False),
    ],
    "architecture": ["mistral"],
    "heads": [2],
    "kv_heads": [1],
    "head_dim": [32],
    "rotary_dim": [8],
    "scales": [Scales(**{name: 3.0}) for name in Scales.__slots__],
}
KEPT = {"max_position": 9, "ends": (EndToken(7, None, ("a test",)),), "dtype": "float16"}


@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_all_that_changes_numbers_without_a_tensor_is_in_the_name(models, load_format):
    source = resolve_model(str(models["hf"]))
    config = replace(read_config(source), rms_norm_eps=1e-4)
    variants = [replace(config, **{name: value}) for name, values in OTHERS.items() for value in values]
    windows = {"sliding_window": 8, "sliding_layers": (True,)}
    variants += [replace(config, **windows), replace(config, **windows | {"sliding_window": 9}), config]
    names = {named(models["hf"], config=variant, load_format=load_format) for variant in variants}
    assert len(names) == len(variants)
    for name, value in KEPT.items():
        assert named(models["hf"], config=replace(config, **{name: value}), load_format=load_format) in names
    assert KEPT.keys() < {field.name for field in fields(ModelConfig)}


def test_random_weights_are_named_by_their_description_alone(models, tmp_path):
    (tmp_path / "config.json").write_bytes((models["hf"] / "config.json").read_bytes())
    random = named(tmp_path, load_format="dummy")
    assert random == named(models["hf"], load_format="dummy") != named(models["hf"])


def test_other_roundings_are_another_format(models, tmp_path):
    libraries = [None, *(tmp_path / name for name in ("avx2-1.so", "avx2-2.so", "avx512-1.so"))]
    backends = [chosen(Arithmetic("fast" if library else "exact", "for the test", library)) for library in libraries]
    assert len({names_of(models["hf"], backend=backend).kv for backend in backends}) == len(libraries)


def test_answers_bear_the_name_of_all_that_computes_them(models, tmp_path):
    gpu = GpuArithmetic("dense", torch.bfloat16)
    one, two = gpu.kv_format(1), gpu.kv_format(2)
    backends = [
        chosen(Arithmetic("exact", "as asked for")),
        chosen(Arithmetic("fast", "the best there is", tmp_path / "avx2-1.so")),
        chosen(Arithmetic("fast", "the best there is", tmp_path / "avx512-1.so")),
        Chosen(one, build("H200")),
        Chosen(one, build("L4")),
        Chosen(two, build("2 x H200")),
        Chosen(one, build("H200") + ", shared prefixes"),
        Chosen(GpuArithmetic("fp8", torch.bfloat16).kv_format(1), build("H200")),
        Chosen(one, build("H200"), {"law": "1a2b"}),
        Chosen(one, build("H200"), {"law": "5e6f"}),
        Chosen(one, build("H200"), {"lex": "1a2b"}),
    ]

    def name(backend, **settings):
        return names_of(models["gguf"], backend=backend, **settings).answer

    names = [name(backend) for backend in backends]
    assert len(set(names)) == len(names)
    why = Arithmetic("exact", "fp32 by torch: no kernels are built")  # chosen by itself, it computes the same
    assert name(chosen(why), cpu_precision="exact") == names[0]
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    assert name(backends[0], chat_template=str(tmp_path / "template.jinja")) not in names
    assert name(backends[0], content_special_tokens="text") not in names


def test_answers_bear_the_name_of_the_texts_around_the_numbers(model):
    """Another vocabulary, template or end token: the same KV of ids, other answers."""
    before = names_of(model)
    if model.is_dir():
        (model / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    else:
        content = model.read_bytes()
        key = b"tokenizer.ggml.eos_token_id"
        place = content.index(key) + len(key) + 4
        model.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert names_of(model).kv == before.kv and names_of(model).answer != before.answer


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
