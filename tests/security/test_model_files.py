"""Nothing in a model's files is believed: sizes are checked against the file, values against their kind; no code of theirs runs."""

import json
import random
import struct
import sys

import pytest
import torch
from safetensors.torch import save_file

from configs.model.gguf_file import GgufTexts
from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelError, resolve_model
from engine.cpu.weights import load_weights
from engine.models.registry import read_config
from server.text import load_tokenizer
from server.text.chat_template import TemplateError, load_chat_template
from server.text.gguf_tokenizer import from_gguf_metadata
from server.text.tokenizer import TokenizerError
from tests import tiny_models
from tests.engine.loading.test_loading import write_gguf
from tests.server.api.scripted import byte_tokenizer
from tests.server.text.test_hostile_templates import memory

SIZES = [0, 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
ODD = [
    0,
    -1,
    2**31,
    2**63,
    2**64,
    10**30,
    -(2**63),
    1.5,
    "x",
    [],
    {},
    True,
    float("nan"),
    float("inf"),
    1e308,
    5e-324,
    [1],
    [None],
]


def load(path) -> None:
    source = resolve_model(str(path))
    load_weights(source, read_config(source), "auto")


def read_or_refused(path) -> bool:
    """Whether the model is refused, which is by a sentence that names a file. Nothing else may happen."""
    with memory(2):
        try:
            load(path)
        except ModelError as error:
            sentence = str(error)
            assert sentence.endswith((".", "?")) and len(sentence) < 1000 and "Traceback" not in sentence
            return True
    return False


@pytest.fixture(scope="module")
def gguf(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    write_gguf(path, tiny_model("llama")[0])
    header = read_gguf_header(path)
    return path.read_bytes(), min(info.offset for info in header.tensors.values())


def test_any_number_in_a_gguf_header_may_be_any_other(gguf, tmp_path):
    content, data = gguf
    path, refused, draw = tmp_path / "changed.gguf", 0, random.Random(5)
    for _ in range(250):
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2])):
            place = draw.randrange(4, data - 8)
            if draw.random() < 0.6:
                changed[place : place + 8] = struct.pack("<Q", draw.choice(SIZES))
            else:
                changed[place] = draw.randrange(256)
        path.write_bytes(changed)
        refused += read_or_refused(path)
    assert refused > 150


def field(gguf, name: bytes, value: int, skip: int) -> bytes:
    """The file with the 64-bit number that stands `skip` bytes behind this tensor's name."""
    content = bytearray(gguf[0])
    place = bytes(content).index(struct.pack("<Q", len(name)) + name) + 8 + len(name) + skip
    content[place : place + 8] = struct.pack("<Q", value)
    return bytes(content)


@pytest.mark.parametrize("value", [2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize(("what", "skip"), [("first dimension", 4), ("second dimension", 12), ("offset", 24)])
def test_a_tensor_that_is_larger_than_its_file(gguf, tmp_path, value, what, skip):
    path = tmp_path / "large.gguf"
    path.write_bytes(field(gguf, b"token_embd.weight", value, skip))
    with memory(1), pytest.raises(ModelError) as refused:
        load(path)
    assert ("large.gguf" in str(refused.value) and "token_embd" in str(refused.value)) or "vocab" in str(refused.value)


def test_dimensions_whose_product_overflows_64_bits(gguf, tmp_path):
    path = tmp_path / "product.gguf"
    once = field(gguf, b"token_embd.weight", 2**32, 4)
    path.write_bytes(field((once, 0), b"token_embd.weight", 2**32, 12))
    with memory(1), pytest.raises(ModelError):
        load(path)


def test_tensors_that_share_bytes(gguf, tmp_path):
    path = tmp_path / "shared.gguf"
    path.write_bytes(field(gguf, b"output.weight", 0, 24))
    with pytest.raises(
        ModelError, match=r"shared\.gguf is damaged: .* begins at byte \d+, within .*, which ends at \d+\."
    ):
        load(path)


def head(values: int, *entries: bytes) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 0, values) + b"".join(entries)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (head(2, *[text(b"a.b") + struct.pack("<II", 4, 1)] * 2), "a.b is listed twice"),
        (
            head(1, text(b"a") + struct.pack("<IIQ", 9, 0, 2**23 + 1), bytes(2**23 + 1)),
            "more than 8388608 entries of arrays",
        ),
        (head(1, text(b"a") + struct.pack("<IIQ", 9, 8, 2**61), bytes(64)), "strings announced at byte"),
        (head(1, text(b"a") + struct.pack("<IIQ", 9, 9, 2**63), bytes(64)), "arrays announced at byte"),
    ],
    ids=["key twice", "many bytes", "many strings", "many arrays"],
)
def test_a_header_is_refused_before_it_takes_memory(tmp_path, content, message):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with memory(0.3), pytest.raises(ModelError, match=message):
        read_gguf_header(path)


def test_any_value_in_a_safetensors_header_may_be_any_other(tiny_model, tmp_path):
    tiny_models.save(tiny_model("llama")[0], tmp_path)
    path, draw, refused = tmp_path / "model.safetensors", random.Random(7), 0
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    described = json.loads(content[8 : 8 + length])
    names = [name for name in described if name != "__metadata__"]
    for _ in range(200):
        changed = json.loads(json.dumps(described))
        entry, key = changed[draw.choice(names)], draw.choice(["dtype", "shape", "data_offsets"])
        if key == "dtype":
            entry[key] = draw.choice(["F16", "I64", "BOOL", "F4", 3, None])
        else:
            entry[key][draw.randrange(len(entry[key]))] = draw.choice([*SIZES, -1, "x", None, 1.5, [], 10**30])
        if draw.random() < 0.1:
            changed[draw.choice(names)] = changed[draw.choice(names)]
        header = json.dumps(changed).encode()
        said = len(header) if draw.random() < 0.8 else draw.choice([*SIZES, len(header) + 1, len(header) - 1])
        path.write_bytes(struct.pack("<Q", said) + header + content[8 + length :])
        refused += read_or_refused(tmp_path)
    assert refused > 180


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_any_key_of_a_config_may_hold_anything(tiny_model, tmp_path, value):
    tiny_models.save(tiny_model("llama")[0], tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    refused = 0
    for key in config:
        path.write_text(json.dumps({**config, key: value}), encoding="utf-8")
        refused += read_or_refused(tmp_path)
    for key in config["rope_parameters"]:
        changed = {**config, "rope_parameters": {**config["rope_parameters"], key: value}}
        path.write_text(json.dumps(changed), encoding="utf-8")
        refused += read_or_refused(tmp_path)
    assert refused >= 1


KEYS = ["tokens", "token_type", "merges", "model", "pre", "bos_token_id", "eos_token_id", "unknown_token_id"]
KEYS += ["padding_token_id", "add_bos_token", "add_eos_token"]


@pytest.mark.parametrize("key", [*(f"tokenizer.ggml.{key}" for key in KEYS), "tokenizer.chat_template"])
def test_any_key_of_a_vocabulary_may_hold_anything(smollm2_source, key):
    metadata = read_gguf_header(smollm2_source.path).metadata
    small = {name: value[:300] if isinstance(value, list | GgufTexts) else value for name, value in metadata.items()}
    small["tokenizer.ggml.merges"] = []
    assert from_gguf_metadata(small).encode("!")
    refused = 0
    for value in [*ODD, ["x"], [[]], ["a"] * 300, [7] * 300, [None] * 300, {"a": 1}]:
        try:
            tokenizer = from_gguf_metadata({**small, key: value})
            load_chat_template(tokenizer)
        except (TokenizerError, TemplateError) as error:
            assert 0 < len(str(error)) < 600
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    "key", ["added_tokens_decoder", "additional_special_tokens", "bos_token", "add_bos_token", "chat_template"]
)
def test_any_key_of_a_tokenizer_config_may_hold_anything(tmp_path, key):
    byte_tokenizer()._backend.save(str(tmp_path / "tokenizer.json"))
    for value in [
        *ODD,
        {"1": {}},
        {"x": {"content": "a"}},
        {"1": {"content": 3}},
        {"1": None},
        [{}],
        [{"name": "a"}],
        [3],
        ["a"],
    ]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: value}), encoding="utf-8")
        try:
            load_chat_template(load_tokenizer(tmp_path))
        except (TokenizerError, TemplateError) as error:
            assert len(str(error)) < 600


@pytest.mark.parametrize("content", ["", "[", "3", "null", '{"a": ' * 100_000, "\x00"], ids=range(6))
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_files_that_are_no_json(tmp_path, name, content):
    byte_tokenizer()._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=name):
        load_tokenizer(tmp_path)


# --- code in a model's folder ---------------------------------------------------------------------------------------------

MODULES = [
    "modeling_x",
    "configuration_x",
    "tokenization_x",
    "generation_x",
    "sitecustomize",
    "conftest",
    "__init__",
    "torch",
]


def test_code_in_a_models_folder_is_never_run(tiny_model, tmp_path, monkeypatch):
    """Neither what `auto_map` names nor what lies there under any usual name, nor what pickled weights would call."""
    marker = tmp_path / "run"
    folder = tmp_path / "model"
    tiny_models.save(tiny_model("llama")[0], folder)
    byte_tokenizer()._backend.save(str(folder / "tokenizer.json"))
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w').close()\n", encoding="utf-8")
    auto = {
        "AutoConfig": "configuration_x.X",
        "AutoModelForCausalLM": "modeling_x.X",
        "AutoTokenizer": ["tokenization_x.X", None],
    }
    for name, extra in {
        "config.json": {"auto_map": auto, "custom_generate": "generation_x", "trust_remote_code": True},
        "tokenizer_config.json": {"auto_map": auto, "tokenizer_class": "X", "bos_token": "<|im_start|>"},
        "generation_config.json": {"custom_generate": "generation_x", "trust_remote_code": True},
    }.items():
        known = json.loads((folder / name).read_text(encoding="utf-8")) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(known | extra), encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"cbuiltins\nexec\n(S'open(%r, \"w\")'\ntR." % str(marker).encode())
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    load(folder)
    load_tokenizer(folder)
    assert not marker.exists()
    assert not {
        name
        for name in set(sys.modules) - before
        if name.startswith(("modeling_x", "configuration_x", "tokenization_x"))
    }


def test_pickled_weights_alone_are_refused(tiny_model, tmp_path):
    tiny_models.save(tiny_model("llama")[0], tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load(tmp_path)


def test_shards_outside_of_the_folder_are_refused(tiny_model, tmp_path):
    folder = tmp_path / "model"
    tiny_models.save(tiny_model("llama")[0], folder)
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    for place in ("../other.safetensors", str(tmp_path / "other.safetensors"), "./../other.safetensors"):
        index = {"weight_map": {"a": place}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        with pytest.raises(ModelError, match="shards"):
            load(folder)
