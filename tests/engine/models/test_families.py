"""Descriptions of families: names, shapes and bytes are those of transformers and of llama.cpp's package."""

from dataclasses import replace

import gguf
import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from configs.model.source import ModelError, resolve_model
from engine.models.family import AFTER_NORMS, ENDS, LAYER, PARTS, WIDE_NORMS, Axis, renamed, without
from engine.models.layout import check_shapes, expected_shapes, gguf_names, norm_names, weights_bytes
from engine.models.registry import family_of, known_families, read_config
from tests import tiny_models
from tests.tiny_models import TINY


def described(name, folder):
    """The description of a recipe, from its config.json alone, and transformers' model of it without any memory."""
    config = TINY[name].config()
    config.architectures = [f"{TINY[name].kind}ForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = getattr(transformers, f"{TINY[name].kind}ForCausalLM")(config)
    return read_config(resolve_model(str(folder))), model


@pytest.mark.parametrize("name", TINY)
def test_tensors_are_those_of_transformers(name, tmp_path):
    config, model = described(name, tmp_path)
    theirs = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    for fused in family_of(config).fused:
        for layer in range(config.layers):
            parts = [family_of(config).tensor(role, layer) for role in fused.roles]
            shape = theirs.pop(f"model.layers.{layer}.{fused.hf}.weight")
            assert shape[0] == sum(part.shape(config)[0] for part in parts)
            theirs |= {part.hf: (part.shape(config)[0], *shape[1:]) for part in parts}
    assert expected_shapes(config) == theirs
    assert weights_bytes(config) == sum(4 * parameter.numel() for parameter in model.parameters())
    assert norm_names(config) == {key for key in theirs if key.endswith("norm.weight")}


@pytest.mark.parametrize("name", TINY)
def test_gguf_names_are_those_of_llama_cpps_converter(name, tmp_path):
    config, _ = described(name, tmp_path)
    written = {"mistral": "llama", "olmo3": "olmo2"}.get(config.architecture, family_of(config).gguf)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == written)
    names = gguf.get_tensor_name_map(arch, config.layers)
    ours = {tensor.hf: tensor.gguf for tensor in family_of(config).tensors(config)}
    theirs = {key: names.get_name(key, try_suffixes=(".weight", ".bias")) for key in ours}
    # Parts of what its files fuse need no name there.
    fused = {role for whole in family_of(config).fused for role in whole.roles}
    parts = {t.hf for t in family_of(config).tensors(config) if t.spec.role in fused and theirs[t.hf] is None}
    assert {key: name for key, name in ours.items() if key not in parts} == {
        key: name for key, name in theirs.items() if key not in parts
    }
    for whole in family_of(config).fused:
        name = f"model.layers.1.{whole.hf}.weight"
        assert names.get_name(name, try_suffixes=(".weight",)) == f"blk.1.{whole.gguf}.weight"
    assert gguf_names(config).items() >= {value: key for key, value in ours.items()}.items()


@pytest.mark.parametrize("name", known_families())
def test_every_family_is_a_class_of_transformers_with_its_defaults(name):
    family = known_families()[name]
    config_class = transformers.AutoConfig.for_model(name).__class__
    assert family.hf.generator == MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
    defaults = config_class(num_attention_heads=16, hidden_size=1024)
    assert family.hf.max_position == defaults.max_position_embeddings
    assert getattr(defaults, family.hf.keys.get("hidden_act", "hidden_act")) in family.hf.hidden_act
    assert family.hf.rms_norm_eps == defaults.rms_norm_eps and family.hf.tied == defaults.tie_word_embeddings
    if family.hf.kv_heads is not None:
        assert family.hf.kv_heads == defaults.num_key_value_heads
    if family.hf.head_dim is not None:
        assert family.hf.head_dim == defaults.head_dim


def test_roles_are_the_same_in_all_families():
    """What the decoders ask for by name."""
    known = {spec.role for spec in (*LAYER, *AFTER_NORMS, *WIDE_NORMS)}
    matrices = {spec.role for spec in LAYER if not spec.is_norm}
    for family in known_families().values():
        assert [spec.role for spec in family.ends] == [spec.role for spec in ENDS]
        assert matrices <= {spec.role for spec in family.layer} <= known


def test_every_matrix_is_split_along_one_axis_and_every_norm_along_none():
    for spec in (*ENDS, *LAYER):
        assert sum(axis.split for axis in spec.axes) == (0 if spec.is_norm else 1)


def test_a_head_is_a_tensor_of_its_own_only_if_it_is_not_tied(tmp_path):
    tied, _ = described("llama-tied", tmp_path)
    free = replace(tied, tie_word_embeddings=False)
    assert expected_shapes(free).keys() - expected_shapes(tied).keys() == {"lm_head.weight"}
    assert weights_bytes(free) - weights_bytes(tied) == 4 * tied.vocab_size * tied.hidden_size
    check_shapes("here", expected_shapes(free), tied)  # old checkpoints hold a tied head a second time


def test_a_bias_is_there_exactly_if_its_flag_is(tmp_path):
    config, _ = described("llama", tmp_path)
    flags = {"q": "qkv_bias", "k": "qkv_bias", "v": "qkv_bias", "o": "o_bias", "gate": "mlp_bias", "down": "mlp_bias"}
    for role, flag in flags.items():
        bias = family_of(config).tensor(role, 1, PARTS[1])
        assert not bias.present(config)
        assert bias.present(replace(config, **{flag: True}))
        assert bias.shape(config) == family_of(config).tensor(role, 1).shape(config)[:1]


def test_names_of_roles_can_be_replaced_and_unknown_roles_are_refused():
    specs = renamed(LAYER, {"q": "attn.query"})
    assert [spec.hf for spec in specs if spec.role in ("q", "k")] == ["attn.query", "self_attn.k_proj"]
    assert [spec.gguf for spec in specs] == [spec.gguf for spec in LAYER]
    with pytest.raises(KeyError, match="no such roles: experts"):
        renamed(LAYER, {"experts": "mlp.experts"})
    with pytest.raises(KeyError, match="no such roles: experts"):
        without(LAYER, "q_norm", "experts")


def test_sizes_of_axes_are_those_of_the_description(smollm2_source):
    config = read_config(smollm2_source)
    sizes = {axis: axis.size(config) for axis in Axis}
    assert sizes == {
        Axis.HIDDEN: 576, Axis.HEAD_DIM: 64, Axis.QUERIES: 576, Axis.KEYS: 192, Axis.INNER: 1536, Axis.VOCABULARY: 49152
    }  # fmt: skip


def test_a_description_of_no_family_is_refused(smollm2_source):
    config = replace(read_config(smollm2_source), architecture="gpt2")
    with pytest.raises(ModelError, match="the model: the architecture 'gpt2' is not implemented; known: gemma,"):
        family_of(config)


def test_a_gguf_file_of_a_family_without_a_name_there_is_refused(tmp_path):
    """Mistral models are `llama` in GGUF files."""
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "mistral")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(
        ModelError, match=r"m\.gguf: the architecture 'mistral' is not implemented; known: .*granite, llama, olmo2"
    ):
        read_config(resolve_model(str(path)))


def test_offsets_of_norms_are_added_by_the_reader_of_checkpoints(tiny_model, monkeypatch):
    """A family whose files hold w - 1: every norm is one more than what is stored, and nothing else is touched."""
    from engine.cpu.weights import load_weights
    from engine.models.families import qwen3

    model, folder = tiny_model("qwen3")
    source = resolve_model(str(folder))
    config = read_config(source)
    plain = load_weights(source, config, "auto")
    monkeypatch.setattr(qwen3, "FAMILY", replace(qwen3.FAMILY, norm_offset=1.0))
    offset = load_weights(source, config, "auto")
    for stored, found in zip(plain.layers, offset.layers, strict=True):
        for name in ("input_norm", "post_norm", "qk_norm"):
            assert torch.equal(getattr(found, name), getattr(stored, name) + 1)
        assert torch.equal(found.qkv.weight, stored.qkv.weight)
    assert torch.equal(offset.final_norm, model.model.norm.weight + 1)
    assert torch.equal(offset.embedding, plain.embedding)


def test_the_recipes_of_the_tests_cover_every_family():
    assert {tiny.config().model_type for tiny in tiny_models.TINY.values()} == set(known_families())
