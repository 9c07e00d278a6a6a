"""A model family is one file beside the others: a test puts one there whose norms, activation and tensor names are its own.

It is read, planned, loaded, computed and split as the built-in ones are, and compared with a forward pass written out in torch.
"""

import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.formats import choose_arithmetic
from engine.cpu.kv_pool import KvPool
from engine.cpu.memory_plan import plan_memory
from engine.cpu.weights import load_weights
from engine.gpu.formats import choose_gpu_arithmetic
from engine.models import families
from engine.models.registry import known_families, read_config
from engine.sequence_input import SequenceInput

TOY = """
from configs.model.hf import HfRules
from engine.models.family import ENDS, LAYER, Family, renamed

FAMILY = Family(
    name="toy",
    hf=HfRules(generator="ToyForCausalLM", max_position=128, hidden_act=("gelu",), qk_norm=True, o_bias="out_bias"),
    activation="gelu",
    norm_offset=1.0,
    hf_layer="blocks.{}.",
    ends=renamed(ENDS, {"embedding": "words", "final_norm": "last_norm", "head": "scores"}),
    layer=renamed(LAYER, {
        "input_norm": "norm1", "post_norm": "norm2", "q": "att.query", "k": "att.key", "v": "att.value", "o": "att.out",
        "q_norm": "att.query_norm", "k_norm": "att.key_norm", "gate": "ff.gate", "up": "ff.up", "down": "ff.down",
    }),
)
"""
HIDDEN, INNER, HEADS, KV_HEADS, DIM, LAYERS, WORDS, EPS = 32, 48, 4, 2, 8, 2, 51, 1e-5
CONFIG = {
    "model_type": "toy", "architectures": ["ToyForCausalLM"], "hidden_act": "gelu", "out_bias": True, "vocab_size": WORDS,
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS, "head_dim": DIM, "rms_norm_eps": EPS, "eos_token_id": 2,
}  # fmt: skip
PROMPT = [7, 31, 5, 50, 12, 44, 9, 6, 25, 3, 17, 18, 9, 0, 2, 40, 41, 42, 1, 33]
TABLE = [2, 0, 3, 1]
BLOCK = 8


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Add the family and write a model of it; returns (source, description, tensors by their names in the file)."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    tensors = drawn()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors")
    source = resolve_model(str(folder))
    yield source, read_config(source), tensors
    sys.modules.pop(f"{families.__name__}.toy", None)
    if hasattr(families, "toy"):
        del families.toy


def drawn():
    """Random tensors; those of norms are stored as w - 1."""
    queries, keys = HEADS * DIM, KV_HEADS * DIM
    shapes = {"words": (WORDS, HIDDEN), "last_norm": (HIDDEN,), "scores": (WORDS, HIDDEN)}
    for layer in range(LAYERS):
        own = {
            "norm1": (HIDDEN,), "norm2": (HIDDEN,), "att.query_norm": (DIM,), "att.key_norm": (DIM,),
            "att.query": (queries, HIDDEN), "att.key": (keys, HIDDEN), "att.value": (keys, HIDDEN),
            "att.out": (HIDDEN, queries), "ff.gate": (INNER, HIDDEN), "ff.up": (INNER, HIDDEN), "ff.down": (HIDDEN, INNER),
        }  # fmt: skip
        shapes |= {f"blocks.{layer}.{name}": shape for name, shape in own.items()}
    generator = torch.Generator().manual_seed(5)
    tensors = {f"{name}.weight": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    biases = {f"blocks.{layer}.att.out.bias": torch.randn(HIDDEN, generator=generator) for layer in range(LAYERS)}
    return tensors | biases


def norm(x, weight):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS) * (1 + weight)


def turned(x):
    """Rotary positions of [tokens, heads, dim]."""
    angles = torch.arange(len(x))[:, None] / 10000 ** (torch.arange(0, DIM, 2) / DIM)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def reference(tensors, ids):
    """Logits of all positions: the family's arithmetic, written out."""
    x = tensors["words.weight"][ids]
    mask = torch.full((len(ids), len(ids)), -math.inf).triu(1)
    for layer in range(LAYERS):
        own = {name.removeprefix(f"blocks.{layer}."): value for name, value in tensors.items()}
        inner = norm(x, own["norm1.weight"])
        q, k, v = ((inner @ own[f"att.{name}.weight"].T).view(len(ids), -1, DIM) for name in ("query", "key", "value"))
        q, k = turned(norm(q, own["att.query_norm.weight"])), turned(norm(k, own["att.key_norm.weight"]))
        k, v = (part.repeat_interleave(HEADS // KV_HEADS, dim=1) for part in (k, v))
        weights = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(DIM) + mask).softmax(-1)
        mixed = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        x = x + mixed @ own["att.out.weight"].T + own["att.out.bias"]
        inner = norm(x, own["norm2.weight"])
        gated = F.gelu(inner @ own["ff.gate.weight"].T) * (inner @ own["ff.up.weight"].T)
        x = x + gated @ own["ff.down.weight"].T
    return norm(x, tensors["last_norm.weight"]) @ tensors["scores.weight"].T


def logits(decoder, chunk):
    """Logits of the prompt, `chunk` tokens per step over scattered blocks."""
    pool = KvPool(decoder.config, len(TABLE), BLOCK)
    rows = []
    for start in range(0, len(PROMPT), chunk):
        part = SequenceInput(token_ids=PROMPT[start : start + chunk], start=start, block_table=TABLE)
        rows.append(decoder.logits(decoder.forward(Batch.build([part], pool), pool)))
    return torch.cat(rows)


class ThreadGroup:
    """Ranks that are threads of this process."""

    def __init__(self, rank, parts, barrier):
        self.rank, self.size = rank, len(parts)
        self._parts, self._barrier = parts, barrier

    def _all(self, value):
        self._parts[self.rank] = value
        self._barrier.wait(30)
        parts = list(self._parts)
        self._barrier.wait(30)
        return parts

    def sum(self, x):
        return torch.stack(self._all(x.clone())).sum(0)

    def gather(self, x):
        return torch.cat(self._all(x.clone()), dim=1)

    def least(self, number):
        return min(self._all(number))


def test_the_family_is_known_as_long_as_its_file_is_there(toy):
    assert list(known_families()) == ["llama", "mistral", "qwen2", "qwen3", "toy"]
    config = toy[1]
    assert (config.architecture, config.qk_norm, config.o_bias, config.qkv_bias) == ("toy", True, True, False)
    assert config.max_position == 128


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_the_exact_decoder_computes_it(toy, chunk):
    source, config, tensors = toy
    decoder = Decoder(config, load_weights(source, config, "auto"))
    expected = reference(tensors, PROMPT)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(decoder, chunk), expected, atol=1e-4, rtol=0)


def test_two_ranks_compute_it(toy):
    source, config, tensors = toy
    parts, barrier = [None, None], threading.Barrier(2)

    def rank(number):
        weights = load_weights(source, config, "auto", rank=number, size=2)
        assert weights.layers[0].o.weight.shape == (HIDDEN, HEADS * DIM // 2)
        return logits(Decoder(config, weights, ThreadGroup(number, parts, barrier)), 7)

    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(rank, range(2)))
    for found in both:
        torch.testing.assert_close(found, reference(tensors, PROMPT), atol=1e-4, rtol=0)


def test_its_memory_is_planned_and_the_plan_says_why_it_is_exact(toy):
    source, config, tensors = toy
    settings = Settings(kv_blocks=4)
    arithmetic = choose_arithmetic(settings, config)
    plan = plan_memory(settings, source, config, arithmetic)
    assert plan.weights == 4 * sum(tensor.numel() for tensor in tensors.values())
    assert plan.arithmetic.startswith("exact: ")
    assert "know the activations silu, gelu_tanh, not gelu, which toy models have" in plan.arithmetic


def test_a_gpu_says_what_it_lacks(toy):
    with pytest.raises(ModelError, match="the GPU kernels know the activations silu, not gelu, which toy models have"):
        choose_gpu_arithmetic(toy[0], toy[1], torch.device("cpu"))


def test_random_weights_of_it_have_norms_of_one(toy):
    source, config, _ = toy
    weights = load_weights(source, config, "dummy")
    assert weights.final_norm.eq(1).all() and weights.layers[1].qk_norm.eq(1).all()
    assert logits(Decoder(config, weights), 512).isfinite().all()


def test_a_tensor_by_the_name_of_another_family_is_not_taken(toy):
    source, config, tensors = toy
    tensors["model.norm.weight"] = tensors.pop("last_norm.weight")
    save_file(tensors, source.path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks tensors: last_norm\.weight; is it a complete toy model\?"):
        load_weights(source, config, "auto")


def test_without_its_file_it_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match="'toy' is not implemented; known: llama, mistral, qwen2, qwen3"):
        read_config(resolve_model(str(tmp_path)))
