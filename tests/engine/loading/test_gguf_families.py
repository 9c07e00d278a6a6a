"""GGUF files of every family, laid out as llama.cpp's converter does: what is computed is what transformers computes."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from configs.model.config import Rotation
from configs.model.source import ModelError, resolve_model
from engine.models.registry import read_config
from tests import tiny_models
from tests.engine.loading.test_loading import add, add_sizes, close, loaded, logits, reference, reordered
from tests.tiny_models import TINY, Tiny, rope

# Recipes that say what llama.cpp knows by the architecture, and keys that its converter writes.
WINDOW = {"sliding_window": 24}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
CASES = {
    "gemma": Tiny("Gemma", {"head_dim": 32}),
    "gemma2": Tiny("Gemma2", {"head_dim": 16, **WINDOW, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0}),
    "gemma3": Tiny(
        "Gemma3",
        {"head_dim": 32, **WINDOW, "num_hidden_layers": 7, "query_pre_attn_scalar": 32}
        | {"rope_parameters": {"full_attention": {"rope_theta": 5e4, "rope_type": "linear", "factor": 4.0}}},
        part="Text",
    ),
    "smollm3": Tiny("SmolLM3", {"pad_token_id": 0, "num_hidden_layers": 5}),
    "granite": TINY["granite"],
    "phi3": TINY["phi3"],
    "phi3-sliding": TINY["phi3-sliding"],
    "olmo2": TINY["olmo2"],
    "olmo3": Tiny(
        "Olmo3",
        {"pad_token_id": 0, **WINDOW, "num_hidden_layers": 5}
        | {"rope_parameters": {kind: {"rope_theta": 5e4, **how} for kind, how in
                               {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}.items()}},
    ),
}  # fmt: skip
ARCHITECTURE = {"gemma3_text": "gemma3", "olmo3": "olmo2"}
PERMUTED = ("smollm3", "granite")


def written(path, model, finish=lambda writer: None):
    config = model.config
    arch = ARCHITECTURE.get(config.model_type, config.model_type)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    describe(writer, config)
    finish(writer)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = tensor.numpy()
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if arch in PERMUTED and (".q_proj." in name or ".k_proj." in name):
            values = reordered(values, config.num_attention_heads if ".q_" in name else config.num_key_value_heads)
        add(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), values, Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def describe(writer, config):
    dim = add_sizes(writer, config)
    full = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(int(dim * full.get("partial_rotary_factor", 1)))
    if full["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if full["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(full["factor"])
        writer.add_rope_scaling_orig_ctx_len(full["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    for key, add_to in {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
    }.items():  # fmt: skip
        if getattr(config, key, None):
            add_to(getattr(config, key))


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_of_each_family_computes_what_its_original_does(tmp_path, name):
    model = tiny_models.made(CASES[name], 3)
    expected = reference(model)
    assert expected.std() > 0.05
    close(logits(*loaded(written(tmp_path / "m.gguf", model))), expected)


def described(tmp_path, name, finish=lambda writer: None):
    return read_config(resolve_model(str(written(tmp_path / "m.gguf", tiny_models.made(CASES[name], 3), finish))))


def test_what_llama_cpp_knows_by_the_architecture(tmp_path):
    gemma3 = described(tmp_path, "gemma3")
    assert gemma3.sliding_layers == (True,) * 5 + (False, True)
    assert (gemma3.rotation.theta, gemma3.window_rotation) == (5e4, Rotation(1e4))
    assert described(tmp_path, "gemma2").sliding_layers == (True, False, True)
    assert described(tmp_path, "smollm3").unrotated_layers == (3,)
    olmo3 = described(tmp_path, "olmo3")
    assert (olmo3.sliding_layers, olmo3.window_rotation) == ((True,) * 3 + (False, True), Rotation(5e4))
    assert described(tmp_path, "olmo2").window_rotation is None


def test_a_pattern_and_a_base_in_the_file_are_believed(tmp_path):
    def finish(writer):
        writer.add_sliding_window_pattern([True, False] * 3 + [True])
        writer.add_float32("gemma3.rope.freq_base_swa", 2e4)

    config = described(tmp_path, "gemma3", finish)
    assert config.sliding_layers == (True, False) * 3 + (True,) and config.window_rotation == Rotation(2e4)
    number = described(tmp_path, "gemma3", lambda writer: writer.add_sliding_window_pattern(3))
    assert number.sliding_layers == (True, True, False) * 2 + (True,)


@pytest.mark.parametrize("pattern", [0, [True, False]])
def test_a_pattern_that_does_not_fit_is_refused(tmp_path, pattern):
    with pytest.raises(
        ModelError, match=r"sliding_window_pattern is .*neither a number nor true or false for each layer"
    ):
        described(tmp_path, "gemma3", lambda writer: writer.add_sliding_window_pattern(pattern))


@pytest.mark.parametrize(("name", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_divide_scores_by_another_width(tmp_path, name, layers):
    """By hidden size / heads, 64 / 4, in place of a head's width."""
    for count, width in ((layers, 16), (layers - 1, 32)):
        tiny = replace(CASES[name], changes=CASES[name].changes | {"head_dim": 32, "num_hidden_layers": count})
        model = tiny_models.made(tiny, 3)
        config = read_config(resolve_model(str(written(tmp_path / f"{count}.gguf", model))))
        assert config.attention_scale == width**-0.5


@pytest.mark.parametrize("quantized", [Kind.Q8_0, Kind.Q4_0])
def test_parts_of_a_fused_matrix_are_its_rows(tmp_path, quantized):
    """Rows are blocks one after the other, whatever their type; a wrong number of rows is refused by name."""
    shape = {"pad_token_id": 0, **rope("default", partial_rotary_factor=0.5)}
    model = tiny_models.made(Tiny("Phi3", shape), 3)
    path, rounded = tmp_path / "m.gguf", tiny_models.made(Tiny("Phi3", shape), 3)
    writer = gguf.GGUFWriter(path, "phi3")
    describe(writer, model.config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, model.config.num_hidden_layers)
    for name, parameter in rounded.named_parameters():
        own = names.get_name(name, try_suffixes=(".weight",))
        kind = quantized if parameter.dim() > 1 else Kind.F32
        add(writer, own, parameter.detach().numpy(), kind)
        if parameter.dim() > 1:
            stored = gguf.quants.quantize(parameter.detach().numpy(), kind)
            parameter.data = torch.from_numpy(gguf.quants.dequantize(stored, kind)).view(parameter.shape).clone()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    close(logits(*loaded(path)), reference(rounded))


def test_a_fused_matrix_of_another_number_of_rows_is_refused(tmp_path):
    model = tiny_models.made(CASES["phi3"], 3)
    layer = model.model.layers[1].self_attn
    layer.qkv_proj.weight = torch.nn.Parameter(layer.qkv_proj.weight[:-1].clone())
    with pytest.raises(ModelError, match=r"blk\.1\.attn_qkv\.weight has 127 rows, not 64 \+ 32 \+ 32\."):
        loaded(written(tmp_path / "m.gguf", model))
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"model\.layers\.1\.self_attn\.qkv_proj\.weight has 127 rows"):
        loaded(folder)


def test_norms_are_not_added_to_twice(tmp_path):
    """llama.cpp's converter adds the 1 that Gemma's checkpoints leave out."""
    model = tiny_models.made(CASES["gemma"], 3)
    _, weights = loaded(written(tmp_path / "m.gguf", model))
    assert np.allclose(weights.final_norm.numpy(), model.model.norm.weight.detach().numpy() + 1)
