"""Descriptions of models, from both kinds of files; and that what is not computed is refused."""

import json
from pathlib import Path

import pytest

from configs.model.config import LinearScaling, Llama3Scaling, Rotation, YarnScaling
from configs.model.ends import TokenNames
from configs.model.gguf import GgufRules, config_from_gguf
from configs.model.gguf_header import GgufHeader, TensorInfo
from configs.model.hf import HfRules, config_from_hf, window_but_every
from configs.model.scales import ScaleRules, Scales, given
from configs.model.source import ModelError, ModelSource
from engine.models.registry import read_config, read_gguf_config, read_hf_config
from tests.tiny_models import TINY

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "eos_token_id": 2,
}
QWEN2 = LLAMA | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
METADATA = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.context_length": 512,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 16,
    "tokenizer.ggml.eos_token_id": 2,
}


def hf(changes=None, generation=None, base=LLAMA):
    return read_hf_config(base | (changes or {}), generation or {}, TokenNames())


def of_gguf(changes=None, tensors=("output.weight",)):
    infos = {name: TensorInfo(Path("m.gguf"), name, (320, 64), 0, 0) for name in ("token_embd.weight", *tensors)}
    metadata = METADATA | (changes or {})
    return read_gguf_config(GgufHeader(Path("m.gguf"), {k: v for k, v in metadata.items() if v is not None}, infos))


@pytest.mark.parametrize("name", TINY)
def test_agrees_with_the_transformers_config_it_was_saved_from(tiny_model, name):
    model, folder = tiny_model(name)
    theirs, ours = model.config, read_config(ModelSource(folder, "hf", name))
    assert ours.architecture == theirs.model_type
    assert (ours.vocab_size, ours.hidden_size) == (theirs.vocab_size, theirs.hidden_size)
    assert (ours.layers, ours.heads, ours.kv_heads) == (
        theirs.num_hidden_layers, theirs.num_attention_heads, theirs.num_key_value_heads
    )  # fmt: skip
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.tie_word_embeddings == theirs.tie_word_embeddings
    assert ours.max_position == theirs.max_position_embeddings
    turned = theirs.rope_parameters
    assert ours.rope_theta == turned.get("full_attention", turned)["rope_theta"]
    if windowed := turned.get("sliding_attention"):
        assert ours.window_rotation == Rotation(windowed["rope_theta"])
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)
    assert ours.eos_token_ids == (2,)


def test_left_out_keys_take_the_defaults_of_the_classes():
    plain = hf()
    assert (plain.kv_heads, plain.head_dim, plain.rope_theta, plain.max_position) == (4, 16, 10000.0, 2048)
    assert (plain.rms_norm_eps, plain.tie_word_embeddings, plain.rope_scaling) == (1e-6, False, None)
    mistral = hf({"model_type": "mistral", "architectures": None, "num_attention_heads": 8})
    assert (mistral.kv_heads, mistral.sliding_window, mistral.sliding_layers) == (8, 4096, (True,) * 3)
    qwen3 = hf({"model_type": "qwen3", "architectures": None})
    assert (qwen3.head_dim, qwen3.qk_norm, qwen3.qkv_bias) == (128, True, False)


def test_a_null_sliding_window_is_none():
    mistral = hf({"model_type": "mistral", "architectures": None, "num_attention_heads": 8, "sliding_window": None})
    assert (mistral.sliding_window, mistral.sliding_layers) == (None, (False,) * 3)
    assert hf({"use_sliding_window": False, "sliding_window": 8}, base=QWEN2).sliding_window is None


def test_sliding_layers_of_qwen():
    by_count = hf({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, base=QWEN2)
    assert (by_count.sliding_window, by_count.sliding_layers) == (8, (False, False, True))
    types = ["sliding_attention", "full_attention", "full_attention"]
    by_type = hf({"use_sliding_window": True, "sliding_window": 8, "layer_types": types}, base=QWEN2)
    assert by_type.sliding_layers == (True, False, False)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}},
        ),
        ({"rope_theta": 5e5, "rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    ],
)
def test_both_forms_of_rotary_settings_are_one(old, new):
    assert hf(old) == hf(new)
    assert hf(old).rope_theta == 5e5


def test_rotary_scalings():
    assert hf({"rope_scaling": {"type": "linear", "factor": 2}}).rope_scaling == LinearScaling(2.0)
    llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert hf({"rope_scaling": llama3 | {"original_max_position_embeddings": 64}}).rope_scaling == Llama3Scaling(
        8.0, 1.0, 4.0, 64
    )
    yarn = hf({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}).rope_scaling
    assert yarn == YarnScaling(4.0, 64, 32.0, 1.0, pytest.approx(1.1386294), True)


def test_both_files_say_when_to_stop():
    assert hf({"eos_token_id": 2}, {"eos_token_id": [5, 6, 5]}).eos_token_ids == (5, 6, 2)
    assert hf({"eos_token_id": [2, 6]}, {"eos_token_id": 6}).eos_token_ids == (6, 2)
    assert hf({"eos_token_id": 2}, {"eos_token_id": None}).eos_token_ids == (2,)
    assert hf({"eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "gpt2"},
            "olmo3, phi3, qwen2, qwen3, smollm3, bert, distilbert, roberta, xlm-roberta.",
        ),
        ({"model_type": None}, "unnamed"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a text generator"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not implemented"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not implemented; known: default"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', not a whole number"),
        ({"vocab_size": True}, "not a whole number"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"hidden_size": 10**400}, "not a whole number of 64 bits"),
        ({"rms_norm_eps": float("inf")}, "not a finite number"),
        ({"rms_norm_eps": 10**400}, "not a finite number"),
        ({"tie_word_embeddings": "yes"}, "not true or false"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; it must be between 1 and 4096"),
        ({"num_hidden_layers": 10**12}, "it must be between 1 and 4096"),
        ({"num_attention_heads": 0}, "heads is 0"),
        ({"rope_theta": 0.0}, "rope_theta is 0.0"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 KV heads"),
        ({"head_dim": 15}, "even head_dim"),
        ({"eos_token_id": 320}, "the end of an answer, token 320 (config.json), is outside the vocabulary of 320"),
        ({"eos_token_id": "two"}, "not a token id"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not implemented; supported: 0."),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        ({"query_pre_attn_scalar": 256}, "query_pre_attn_scalar=256 is not implemented; supported: leaving it out"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier=12.0"),
        ({"residual_multiplier": 0.2}, "residual_multiplier=0.2"),
        ({"num_local_experts": 8}, "num_local_experts=8"),
        ({"num_experts": 60}, "num_experts=60"),
    ],
)
def test_refuses_what_is_not_computed(changes, message):
    with pytest.raises(ModelError) as caught:
        hf(changes)
    assert message in str(caught.value)


def test_keys_of_arithmetic_that_say_nothing_are_taken():
    null = dict.fromkeys(["attn_logit_softcapping", "query_pre_attn_scalar", "num_experts", "clip_qkv"])
    assert hf(null | {"residual_multiplier": 1.0, "num_local_experts": 0, "use_parallel_residual": False}) == hf()


SCALED = HfRules(
    generator="ToyForCausalLM",
    max_position=64,
    scales=ScaleRules(
        embedding_scale=lambda fields: fields.integer("hidden_size") ** 0.5,
        attention_scale=lambda fields: fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_soft_cap=given("attn_logit_softcapping", 50.0),
    ),
    window=window_but_every(3),
    rotary_factor=0.5,
    keys={"hidden_size": "n_embd", "hidden_act": "activation", "rms_norm_eps": "norm_eps"},
)
TOY = {key: value for key, value in LLAMA.items() if key not in ("architectures", "hidden_size")} | {"n_embd": 64}


def scaled(changes=None):
    return config_from_hf(TOY | (changes or {}), {}, TokenNames(), "toy", SCALED)


def test_scales_windows_and_rotation_are_what_the_family_says():
    plain = scaled()
    assert plain.scales == Scales(embedding_scale=8.0, attention_scale=1 / 16, attention_soft_cap=50.0)
    assert (plain.sliding_window, plain.sliding_layers) == (4096, (True, True, False))
    assert (plain.rotary_dim, plain.hidden_size, plain.head_dim) == (8, 64, 16)
    types = ["full_attention", "sliding_attention", "full_attention"]
    other = {"query_pre_attn_scalar": 16, "attn_logit_softcapping": None, "layer_types": types, "sliding_window": 9}
    changed = scaled(other | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}})
    assert changed.scales == Scales(embedding_scale=8.0)  # 16 ** -0.5 is what head_dim gives
    assert (changed.sliding_window, changed.sliding_layers, changed.rotary_dim) == (9, (False, True, False), None)
    assert scaled({"sliding_window": None}).sliding_window is None
    assert scaled({"norm_eps": 1e-3}).rms_norm_eps == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "activation='relu' is not implemented"),
        ({"n_embd": "wide"}, "n_embd is 'wide', not a whole number"),
        ({"norm_eps": "small"}, "norm_eps is 'small'"),
        ({"attn_logit_softcapping": -1.0}, "attention_soft_cap is -1.0; it must be a positive number"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not implemented"),
        ({"partial_rotary_factor": 0.2}, "even part of the head_dim 16"),
        ({"partial_rotary_factor": 1.5}, "even part of the head_dim 16"),
        (
            {"partial_rotary_factor": 1.0, "rope_scaling": {"type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor=1.0 and rope_scaling.partial_rotary_factor=0.5 contradict each other",
        ),
    ],
)
def test_what_a_family_reads_is_refused_by_its_own_names(changes, message):
    with pytest.raises(ModelError) as caught:
        scaled(changes)
    assert message in str(caught.value)


def test_refuses_layer_types_it_does_not_know():
    for kind in ("linear_attention", ["full_attention"], None):
        with pytest.raises(ModelError, match="layer_types"):
            hf({"use_sliding_window": True, "sliding_window": 8, "layer_types": [kind] * 3}, base=QWEN2)
    with pytest.raises(ModelError, match="does not match"):
        hf({"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention"]}, base=QWEN2)


@pytest.mark.parametrize("content", ["[]", "{", "[" * 100_000, "\udcff"])
def test_refuses_files_that_hold_no_object(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match=r"config\.json"):
        read_config(ModelSource(tmp_path, "hf", "m"))


def test_reads_the_generation_file_of_a_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert read_config(ModelSource(tmp_path, "hf", "m")).eos_token_ids == (7, 8, 2)


# --- GGUF ------------------------------------------------------------------------------------------------------------


def test_the_embedded_model(smollm2_source):
    config = read_config(smollm2_source)
    assert (config.architecture, config.vocab_size, config.layers, config.max_position) == ("llama", 49152, 30, 8192)
    assert (config.heads, config.kv_heads, config.head_dim, config.group) == (9, 3, 64, 3)
    assert (config.rope_theta, config.tie_word_embeddings, config.eos_token_ids) == (1e5, True, (2, 0))
    assert config.kv_bytes_per_token == 30 * 2 * 3 * 64 * 4


def test_gguf_files_give_scales_by_the_rules_of_their_family():
    """llama.cpp's keys of Gemma 2; it gives neither the embeddings' scale nor which layers have the window."""
    rules = GgufRules(
        window=window_but_every(2, "attention.sliding_window"),
        partial_rotary=True,
        scales=ScaleRules(
            embedding_scale=lambda fields: fields.integer("embedding_length") ** 0.5,
            attention_soft_cap=given("attn_logit_softcapping"),
            final_soft_cap=given("final_logit_softcapping"),
        ),
    )
    metadata = METADATA | {
        "llama.attn_logit_softcapping": 50.0, "llama.final_logit_softcapping": 0.0, "llama.attention.sliding_window": 8,
        "llama.rope.dimension_count": 8,
    }  # fmt: skip
    infos = {"token_embd.weight": TensorInfo(Path("m.gguf"), "token_embd.weight", (320, 64), 0, 0)}
    config = config_from_gguf(GgufHeader(Path("m.gguf"), metadata, infos), "toy", rules)
    assert config.scales == Scales(embedding_scale=8.0, attention_soft_cap=50.0)
    assert (config.sliding_window, config.sliding_layers, config.rotary_dim) == (8, (True, False), 8)


def test_gguf_features_follow_from_the_tensors():
    plain = of_gguf()
    assert (plain.tie_word_embeddings, plain.qkv_bias, plain.qk_norm, plain.rope_theta) == (False, False, False, 1e4)
    assert of_gguf(tensors=()).tie_word_embeddings
    assert of_gguf(tensors=("blk.0.attn_q.bias",)).qkv_bias
    assert of_gguf(tensors=("blk.0.attn_q_norm.weight",)).qk_norm


def test_gguf_scalings_and_stops():
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert of_gguf(linear).rope_scaling == LinearScaling(4.0)
    yarn = {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
    }
    assert of_gguf(yarn).rope_scaling == YarnScaling(4.0, 128, 32.0, 1.0, pytest.approx(1.1386294), True)
    assert of_gguf({"tokenizer.ggml.eot_token_id": 9}).eos_token_ids == (2, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"general.architecture": "gemma4"},
            "'gemma4' is not implemented; known: gemma, gemma2, gemma3, granite, llama,",
        ),
        ({"general.architecture": None}, "unnamed"),
        ({"llama.expert_count": 8}, "expert_count=8"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count=8 is not implemented; supported: 16"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.attention.scale": 0.5}, "attention.scale=0.5"),
        ({"llama.attention.head_count_kv": [2, 1]}, "not a whole number"),
        ({"llama.block_count": None}, "block_count is missing"),
        ({"llama.block_count": 2**32 - 1}, "it must be between 1 and 4096"),
        ({"llama.attention.value_length": 8}, "value_length=8"),
        ({"tokenizer.ggml.eos_token_id": 4000}, "outside the vocabulary"),
    ],
)
def test_gguf_refuses_what_is_not_computed(changes, message):
    with pytest.raises(ModelError) as caught:
        of_gguf(changes)
    assert message in str(caught.value)


def test_a_gguf_without_an_embedding_is_refused():
    with pytest.raises(ModelError, match=r"token_embd\.weight"):
        read_gguf_config(GgufHeader(Path("m.gguf"), METADATA, {}))
