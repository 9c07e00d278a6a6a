"""Rotary settings of both kinds of files: what transformers makes of them, or a refusal that names the keys."""

from copy import deepcopy

import pytest
import torch
import transformers

from configs.model.config import LinearScaling, YarnScaling
from configs.model.source import ModelError
from engine.models.rope import Rope
from tests.configs.model.test_config import hf, of_gguf

LINEAR = {"rope_type": "linear", "factor": 2.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
OLD_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

AGREEING = {
    "nothing": {},
    "only a base": {"rope_theta": 5e5},
    "empty objects": {"rope_theta": 5e5, "rope_parameters": {}, "rope_scaling": {}},
    "nulls": {"rope_theta": 5e5, "rope_parameters": None, "rope_scaling": None},
    "old": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "new": {"rope_parameters": LINEAR | {"rope_theta": 5e5}},
    "base in both places": {"rope_theta": 5e5, "rope_parameters": LINEAR | {"rope_theta": 5e5}},
    "base outside": {"rope_theta": 5e5, "rope_parameters": LINEAR},
    "both, equal": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": LINEAR},
    "both, one empty": {"rope_scaling": {}, "rope_parameters": LINEAR},
    "both spellings": {"rope_scaling": YARN | {"type": "yarn"}},
    "llama3": {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}},
    "llama3 without its length": {"rope_scaling": LLAMA3},
    "yarn": {"rope_parameters": YARN | {"rope_theta": 5e5}},
    "yarn in both": {"rope_scaling": OLD_YARN, "rope_parameters": YARN},
    "yarn's length outside": {"rope_scaling": {"type": "yarn", "factor": 4.0}, "original_max_position_embeddings": 64},
    "yarn's length in both places": {"rope_scaling": OLD_YARN, "original_max_position_embeddings": 128},
    "yarn, factor null": {"rope_scaling": YARN | {"factor": None}, "max_position_embeddings": 512},
    "yarn, null to truncate": {"rope_scaling": YARN | {"truncate": None}},
    "yarn, not truncated": {"rope_scaling": YARN | {"truncate": False, "beta_fast": 20}},
    "yarn, scaled": {"rope_scaling": YARN | {"mscale": 1.2, "mscale_all_dim": 0.7}},
    "yarn, attention": {"rope_scaling": YARN | {"attention_factor": 0.8, "beta_slow": 2.0}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", AGREEING)
def test_settings_that_agree_are_read_as_transformers_reads_them(name):
    """Frequencies and magnitude, bit for bit: what is computed, not how it is spelled."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    raw = {"max_position_embeddings": 256, "vocab_size": 320, "hidden_size": 64, "num_attention_heads": 4} | AGREEING[
        name
    ]
    theirs = LlamaRotaryEmbedding(transformers.AutoConfig.for_model("llama", **deepcopy(raw)))  # which writes into it
    ours = Rope(hf(raw))
    assert torch.equal(ours.frequencies, theirs.inv_freq)
    assert ours.magnitude == theirs.attention_scaling


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": LINEAR}, "rope_parameters rope_scaling"),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}}, "rope_parameters rope_scaling"),
        ({"rope_scaling": LINEAR, "rope_parameters": LINEAR | {"rope_theta": 5e5}}, "rope_parameters rope_scaling"),
        ({"rope_scaling": OLD_YARN, "rope_parameters": YARN | {"beta_fast": 16}}, "rope_parameters rope_scaling"),
        ({"rope_theta": 1e6, "rope_parameters": LINEAR | {"rope_theta": 5e5}}, "rope_parameters rope_theta"),
        ({"rope_theta": 1e6, "rope_scaling": LINEAR | {"rope_theta": 5e5}}, "rope_scaling rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "rope_scaling rope_type type"),
        ({"rope_scaling": YARN, "original_max_position_embeddings": 64}, "rope_scaling original_max_position_embeddings"),
        ({"rope_scaling": "linear"}, "rope_scaling object"),
        ({"rope_parameters": [LINEAR]}, "rope_parameters object"),
        ({"rope_parameters": {"sliding_attention": LINEAR, "full_attention": None}}, "rope_parameters per layer type"),
        (
            {"rope_scaling": {"type": "yarn", "short_factor": [1.0], "long_factor": [2.0]}},
            "rope_scaling short_factor long_factor for each frequency longrope",
        ),
        ({"rope_scaling": {"type": "ntk"}}, "rope_scaling ntk known: default, linear, llama3, yarn"),
        ({"rope_scaling": {"rope_type": 7}}, "rope_type not a string"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rotary factor greater than 0"),
        ({"rope_scaling": YARN | {"factor": -4.0}}, "rotary factor greater than 0"),
        ({"rope_scaling": YARN | {"original_max_position_embeddings": 0}}, "original_max_position_embeddings at least 1"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, "low_freq_factor less than high_freq_factor"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused_by_their_keys(changes, keys):
    with pytest.raises(ModelError) as caught:
        hf(changes)
    assert all(key in str(caught.value) for key in keys.split())


def test_a_key_that_a_type_does_not_read_is_warned_of(caplog):
    """As transformers does. Some files of YaRN models say how they were trained."""
    hf({"rope_scaling": YARN | {"finetuned": True, "beta_fast": None}})
    assert "rope_scaling: the type 'yarn' does not read finetuned" in caplog.text
    caplog.clear()
    hf({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5, "factor": 8.0}})
    assert "rope_parameters: the type 'default' does not read factor" in caplog.text
    caplog.clear()
    hf({"rope_scaling": YARN | {"type": "yarn", "low_freq_factor": None}})
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, 1280),
        ({"rope_scaling": YARN}, 512),  # four times 128: the file's length is what it is stretched to
        ({"rope_scaling": YARN | {"factor": 16.0}}, 2048),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 2048),
        ({"rope_scaling": YARN | {"factor": 1.0}}, 512),
        ({"rope_scaling": LLAMA3}, 512),
        ({"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, 512),
    ],
)
def test_the_length_that_a_model_is_made_for(changes, length):
    assert hf({"max_position_embeddings": 512} | changes).max_model_len == length


def rotary(changes):
    return {f"llama.rope.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("changes", "scaling", "length"),
    [
        ({}, None, 512),
        ({"scaling.type": "none"}, None, 512),
        ({"scaling.factor": 1.0, "scale_linear": 0.0}, None, 512),
        ({"scaling.factor": 4.0}, LinearScaling(4.0), 2048),  # as llama.cpp: a factor alone is linear
        ({"scale_linear": 4.0}, LinearScaling(4.0), 2048),
        ({"scaling.type": "linear", "scaling.factor": 4.0, "scale_linear": 4.0}, LinearScaling(4.0), 2048),
        (
            {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 128, "scaling.attn_factor": 2.0},
            YarnScaling(8.0, 128, 32.0, 1.0, pytest.approx(2.4158883), True), 1024,
        ),
    ],
)  # fmt: skip
def test_scalings_and_lengths_of_gguf_files(changes, scaling, length):
    config = of_gguf(rotary(changes))
    assert config.rope_scaling == scaling
    assert config.max_model_len == length


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"scaling.factor": 4.0, "scale_linear": 2.0}, "rope.scaling.factor=4.0 rope.scale_linear=2.0"),
        ({"scaling.type": "none", "scaling.factor": 4.0}, "rope.scaling.type 'none' 4.0"),
        ({"scaling.type": "linear", "scaling.attn_factor": 2.0}, "rope.scaling.type 'linear' attn_factor 2.0"),
        (
            {"scaling.type": "yarn", "scaling.attn_factor": 2.0, "scaling.yarn_attn_factor": 3.0},
            "rope.scaling.attn_factor=2.0 rope.scaling.yarn_attn_factor=3.0",
        ),
        ({"scaling.type": "dynamic"}, "rope.scaling.type 'dynamic' linear yarn"),
        ({"scaling.type": "linear", "scaling.factor": -2.0}, "rotary factor greater than 0"),
    ],
)
def test_rotary_settings_of_gguf_files_that_contradict_each_other_are_refused(changes, keys):
    with pytest.raises(ModelError) as caught:
        of_gguf(rotary(changes))
    assert all(key in str(caught.value) for key in keys.split())
