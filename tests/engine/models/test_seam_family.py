"""A model family is one file beside the others: a test puts one there whose arithmetic is Gemma 2's, under tensor names of its own.

It is read, planned, loaded, computed and split as the built-in ones are, and compared with transformers. What a family declares
and a decoder lacks is refused by name.
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import save_file

from configs.model.scales import Scales
from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.cpu import formats, packed_weights
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.formats import FAST, choose_arithmetic
from engine.cpu.kv_pool import KvPool
from engine.cpu.memory_plan import CAPPED_TOKENS, activation_bytes, plan_memory
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.weights import load_weights
from engine.gpu.formats import GpuArithmetic, choose_gpu_arithmetic
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.loading import load
from engine.models import families
from engine.models.family import AFTER_NORMS, ENDS, LAYER, Axis, Family, TensorSpec
from engine.models.registry import family_of, known_families, read_config
from engine.sequence_input import SequenceInput
from kernels.cpu.ops.paged_attention import STAGED_TOKENS

TOY = """
from configs.model.hf import HfRules, window_but_every
from configs.model.scales import ScaleRules, given
from engine.models.family import AFTER_NORMS, ENDS, LAYER, Family, renamed

FAMILY = Family(
    name="toy",
    hf=HfRules(
        generator="ToyForCausalLM",
        max_position=128,
        hidden_act=("gelu",),
        tied=True,
        window=window_but_every(2),
        scales=ScaleRules(
            embedding_scale=lambda fields: fields.integer("hidden_size") ** 0.5,
            attention_scale=lambda fields: fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
            attention_soft_cap=given("attn_logit_softcapping", 50.0),
            final_soft_cap=given("final_logit_softcapping", 30.0),
        ),
        keys={"hidden_act": "hidden_activation", "rms_norm_eps": "norm_eps"},
    ),
    activation="gelu",
    norm_offset=1.0,
    hf_layer="blocks.{}.",
    ends=renamed(ENDS, {"embedding": "words", "final_norm": "last_norm"}),
    layer=renamed((*LAYER, *AFTER_NORMS), {
        "input_norm": "norm1", "after_attention_norm": "norm2", "post_norm": "norm3", "after_mlp_norm": "norm4",
        "q": "att.query", "k": "att.key", "v": "att.value", "o": "att.out",
    }),
)
"""
RENAMED = {  # transformers' names of Gemma 2's tensors, and the toy's
    "model.layers.": "blocks.", "model.embed_tokens": "words", "model.norm": "last_norm",
    "input_layernorm": "norm1", "post_attention_layernorm": "norm2", "pre_feedforward_layernorm": "norm3",
    "post_feedforward_layernorm": "norm4", "self_attn.q_proj": "att.query", "self_attn.k_proj": "att.key",
    "self_attn.v_proj": "att.value", "self_attn.o_proj": "att.out",
}  # fmt: skip
HIDDEN, HEADS, DIM, LAYERS, WORDS = 32, 4, 8, 3, 51
GEMMA = transformers.Gemma2Config(
    vocab_size=WORDS, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=2, head_dim=DIM, rms_norm_eps=1e-5, max_position_embeddings=128, sliding_window=6,
    hidden_activation="gelu", query_pre_attn_scalar=3, attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
    eos_token_id=2, attn_implementation="eager",
)  # fmt: skip
CONFIG = {
    "model_type": "toy", "architectures": ["ToyForCausalLM"], "hidden_activation": "gelu", "vocab_size": WORDS,
    "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": 2, "head_dim": DIM, "norm_eps": 1e-5, "sliding_window": 6, "query_pre_attn_scalar": 3,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "eos_token_id": 2,
}  # fmt: skip
PROMPT = [7, 31, 5, 50, 12, 44, 9, 6, 25, 3, 17, 18, 9, 0, 2, 40, 41, 42, 1, 33]
TABLE = [2, 0, 3, 1]
BLOCK = 8


@pytest.fixture(scope="module")
def gemma():
    """transformers' model, at random."""
    model = transformers.Gemma2ForCausalLM(GEMMA).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture
def toy(gemma, tmp_path, monkeypatch):
    """Add the family and write a model of it; returns (source, description, tensors by their names in the file)."""
    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "toy.py").write_text(TOY)
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    tensors = {}
    for name, parameter in gemma.named_parameters():
        own = name
        for theirs, ours in RENAMED.items():
            own = own.replace(theirs, ours)
        tensors[own] = parameter.data
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, folder / "model.safetensors")
    source = resolve_model(str(folder))
    yield source, read_config(source), tensors
    sys.modules.pop(f"{families.__name__}.toy", None)
    if hasattr(families, "toy"):
        del families.toy


def reference(model):
    """Logits of all positions."""
    with torch.inference_mode():
        return model(torch.tensor([PROMPT])).logits[0]


def chunks(size):
    for start in range(0, len(PROMPT), size):
        yield SequenceInput(token_ids=PROMPT[start : start + size], start=start, block_table=TABLE)


def logits(decoder, size):
    """Logits of the prompt, `size` tokens per step over scattered blocks."""
    pool = KvPool(decoder.config, len(TABLE), BLOCK)
    rows = [decoder.logits(decoder.forward(Batch.build([part], pool), pool)) for part in chunks(size)]
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
    assert list(known_families())[-1] == "toy" and "llama" in known_families()
    config = toy[1]
    assert (config.architecture, config.max_position, config.rms_norm_eps) == ("toy", 128, 1e-5)
    assert config.tie_word_embeddings and config.sliding_layers == (True, False, True)
    assert config.attention_scale == 3**-0.5
    assert (config.scales.embedding_scale, config.scales.attention_soft_cap) == (HIDDEN**0.5, 2.0)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_the_exact_decoder_computes_it(toy, gemma, chunk):
    source, config, _ = toy
    decoder = Decoder(config, load_weights(source, config, "auto"))
    expected = reference(gemma)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits(decoder, chunk), expected, atol=1e-4, rtol=0)


def test_each_of_its_variants_tells(toy, gemma):
    """Otherwise the model above would not show that they are computed."""
    source, config, _ = toy
    weights, expected = load_weights(source, config, "auto"), reference(gemma)
    for name in ("embedding_scale", "attention_scale", "attention_soft_cap", "final_soft_cap"):
        other = replace(config, scales=replace(config.scales, **{name: None}))
        assert (logits(Decoder(other, weights), 512) - expected).abs().max() > 0.01, name
    for name in ("after_attention_norm", "after_mlp_norm"):
        without = replace(weights, layers=[replace(layer, **{name: None}) for layer in weights.layers])
        assert (logits(Decoder(config, without), 512) - expected).abs().max() > 0.01, name
    unwindowed = replace(config, sliding_window=None, sliding_layers=(False,) * LAYERS)
    assert (logits(Decoder(unwindowed, weights), 512) - expected).abs().max() > 0.01


def test_two_ranks_compute_it(toy, gemma):
    source, config, _ = toy
    parts, barrier = [None, None], threading.Barrier(2)

    def rank(number):
        weights = load_weights(source, config, "auto", rank=number, size=2)
        assert weights.layers[0].o.weight.shape == (HIDDEN, HEADS * DIM // 2)
        return logits(Decoder(config, weights, ThreadGroup(number, parts, barrier)), 7)

    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(rank, range(2)))
    for found in both:
        torch.testing.assert_close(found, reference(gemma), atol=1e-4, rtol=0)


def changed(monkeypatch, **changes):
    """The toy family, altered."""
    module = sys.modules[f"{families.__name__}.toy"]
    monkeypatch.setattr(module, "FAMILY", replace(module.FAMILY, **changes))


def test_a_gpu_computes_all_but_its_activation(toy, monkeypatch):
    source, config, _ = toy
    with pytest.raises(ModelError, match="the GPU kernels know the activations silu, not gelu, which toy models have"):
        choose_gpu_arithmetic(source, config, torch.device("cpu"))
    changed(monkeypatch, activation="silu")
    arithmetic, device = GpuArithmetic("dense", torch.float32), torch.device("cpu")
    pool = GpuKvPool(config, len(TABLE), BLOCK, device, torch.float32)
    ours = GpuModel(config, load(source, config, "auto", GpuAssembly(arithmetic, device)), pool, context=64)
    found = [ours.logits(ours.forward([part])) for part in chunks(19)]  # the last token alone, as in decode
    expected = logits(Decoder(config, load_weights(source, config, "auto")), 512)
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-4, rtol=0)


def test_its_memory_is_planned_and_the_plan_says_why_it_is_exact(toy):
    source, config, tensors = toy
    settings = Settings(kv_blocks=4)
    arithmetic = choose_arithmetic(settings, config)
    plan = plan_memory(settings, source, config, arithmetic)
    assert plan.weights == 4 * sum(tensor.numel() for tensor in tensors.values())
    assert plan.arithmetic.startswith("exact: ")
    assert "know the activations silu, gelu_tanh, not gelu, which toy models have" in plan.arithmetic
    uncapped = replace(config, scales=replace(config.scales, attention_soft_cap=None))
    assert activation_bytes(settings, config) > activation_bytes(settings, uncapped)
    assert CAPPED_TOKENS == STAGED_TOKENS


def test_random_weights_of_it_have_norms_of_one(toy):
    source, config, _ = toy
    weights = load_weights(source, config, "dummy")
    assert weights.final_norm.eq(1).all() and weights.layers[1].after_mlp_norm.eq(1).all()
    assert logits(Decoder(config, weights), 512).isfinite().all()


def test_a_tensor_by_the_name_of_another_family_is_not_taken(toy):
    source, config, tensors = toy
    tensors["model.norm.weight"] = tensors.pop("last_norm.weight")
    save_file(tensors, source.path / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks tensors: last_norm\.weight; is it a complete toy model\?"):
        load_weights(source, config, "auto")


def test_without_its_file_it_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ModelError, match=r"'toy' is not implemented; known: .*llama, mistral, .*qwen3, smollm3, bert"):
        read_config(resolve_model(str(tmp_path)))


def with_spec(role, **changes):
    return tuple(replace(spec, **changes) if spec.role == role else spec for spec in LAYER)


def without(role):
    return tuple(spec for spec in LAYER if spec.role != role)


BEYOND = {  # a layer, flags of the description, what is said of it
    "a third norm": (
        (*LAYER, TensorSpec("third_norm", "norm5", "norm5", (Axis.HIDDEN,))), {},
        "compute no tensor third_norm.weight in each layer, which toy models have",
    ),
    "experts": (
        (*LAYER, TensorSpec("router", "mlp.router", "ffn_gate_inp", (Axis.INNER, Axis.HIDDEN))), {},
        "compute no tensor router.weight in each layer",
    ),
    "a norm with a bias": (
        with_spec("input_norm", bias="qkv_bias"), {"qkv_bias": True}, "compute no tensor input_norm.bias in each layer"
    ),
    "a bias of keys alone": (
        with_spec("q", bias=None), {"qkv_bias": True}, "need a tensor q.bias in each layer, which toy models do not have"
    ),
    "a norm that no flag names": (
        with_spec("q_norm", only=None), {}, "compute no tensor q_norm.weight in each layer"
    ),
    "a flag without its tensor": (
        without("k_norm"), {"qk_norm": True}, "need a tensor k_norm.weight in each layer"
    ),
    "a norm over all heads": (
        with_spec("q_norm", axes=(Axis.QUERIES,)), {"qk_norm": True},
        r"compute a tensor q_norm of \['head_dim'\] in each layer, not of \['queries'\], as toy models have",
    ),
    "no output of attention": (without("o"), {}, "need a tensor o.weight in each layer"),
    "no gate": (without("gate"), {}, "need a tensor gate.weight in each layer"),
}  # fmt: skip


@pytest.mark.parametrize("what", BEYOND)
def test_what_a_family_declares_and_no_decoder_computes_is_refused(toy, monkeypatch, what):
    source, config, _ = toy
    layer, flags, said = BEYOND[what]
    changed(monkeypatch, layer=layer, activation="silu")
    config = replace(config, **flags)
    with pytest.raises(ModelError, match=f"the exact decoder's kernels {said}"):
        choose_arithmetic(Settings(), config)
    with pytest.raises(ModelError, match=said):
        load_weights(source, config, "dummy")
    with pytest.raises(ModelError, match=said):
        Decoder(config, SimpleNamespace())
    for use in (choose_gpu_arithmetic, lambda *_: load(source, config, "dummy", GPU_ASSEMBLY)):
        with pytest.raises(ModelError, match=f"the GPU kernels {said}"):
            use(source, config, torch.device("cpu"))


GPU_ASSEMBLY = GpuAssembly(GpuArithmetic("dense", torch.float32), torch.device("cpu"))


def test_a_bias_of_the_head_is_refused(toy, monkeypatch):
    config = replace(toy[1], tie_word_embeddings=False, mlp_bias=True)
    ends = tuple(replace(spec, bias="mlp_bias") if spec.role == "head" else spec for spec in ENDS)
    changed(monkeypatch, ends=ends)
    with pytest.raises(ModelError, match=r"compute no tensor head\.bias, which toy models have"):
        choose_arithmetic(Settings(), config)


def lesser_kernels(monkeypatch, **lacking):
    """As if the C++ kernels computed less than they do."""
    for module in (formats, packed_weights):
        monkeypatch.setattr(module, "FAST", replace(FAST, **lacking))


@pytest.mark.parametrize("name", Scales.__slots__)
def test_the_fast_kernels_leave_what_they_lack_to_the_exact_ones(toy, monkeypatch, name):
    source, config, _ = toy
    changed(monkeypatch, activation="silu", layer=LAYER)
    lesser_kernels(monkeypatch, variants=frozenset())
    value = getattr(config.scales, name) or 3.0
    config = replace(config, scales=Scales(**{name: value}))
    chosen = choose_arithmetic(Settings(), config)
    assert chosen.precision == "exact"
    assert f"the C++ kernels compute no {name}, which toy models have ({value:g})" in chosen.reason
    with pytest.raises(ModelError, match=rf"the C\+\+ kernels compute no {name}.*; use --cpu-precision exact\."):
        load(source, config, "dummy", assemble_packed)


def test_kernels_without_a_norm_after_attention_leave_it_to_the_exact_ones(toy, monkeypatch):
    changed(monkeypatch, activation="silu")
    lesser_kernels(monkeypatch, more=())
    config = replace(toy[1], scales=type(toy[1].scales)())
    assert "compute no tensor after_attention_norm.weight in each layer" in choose_arithmetic(Settings(), config).reason


def test_a_tensor_that_is_described_twice_is_an_error(toy):
    with pytest.raises(ValueError, match="the family toy describes tensors twice: after_mlp_norm"):
        replace(family_of(toy[1]), layer=(*LAYER, *AFTER_NORMS, AFTER_NORMS[1]))


def test_scales_that_gguf_files_do_not_give_are_an_error(toy):
    family: Family = family_of(toy[1])
    with pytest.raises(ValueError, match="does not say how GGUF files give its scales"):
        replace(family, gguf="gemma2")
