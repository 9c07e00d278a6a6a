"""`config.json` and `generation_config.json` of a Hugging Face folder, read into a `ModelConfig`.

Both forms of the rotary settings are read: `rope_theta` with `rope_scaling`, and `rope_parameters` (transformers 5).
Keys left out take the defaults of the transformers classes, because older checkpoints rely on them. What we do not
compute is refused here: a model must never run with a part of its arithmetic ignored.
"""

import math
from typing import Any

from configs.model.config import (
    ARCHITECTURES,
    LinearScaling,
    Llama3Scaling,
    ModelConfig,
    RopeScaling,
    YarnScaling,
)
from configs.model.fields import Fields
from configs.model.source import ModelError

_WHERE = "config.json"
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_DEFAULT_MAX_POSITION = {"llama": 2048, "mistral": 131072, "qwen2": 32768, "qwen3": 32768}
_DEFAULT_KV_HEADS = {"mistral": 8}
_DEFAULT_HEAD_DIM = {"qwen3": 128}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def config_from_hf(raw: dict[str, Any], generation: dict[str, Any]) -> ModelConfig:
    """Build a `ModelConfig` from the two JSON objects (`generation` may be empty).

    Raises:
        ModelError: an unknown architecture, a missing value, or a feature that is not implemented.
    """
    fields = Fields(raw, _WHERE)
    architecture = _architecture(fields)
    _refuse_unimplemented(fields)
    layers, heads = fields.layers("num_hidden_layers"), fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    max_position = fields.integer("max_position_embeddings", _DEFAULT_MAX_POSITION[architecture])
    theta, scaling = _rope(fields, max_position)
    window, sliding = _sliding(fields, architecture, layers)
    bias = fields.flag("attention_bias", default=False) and architecture in ("llama", "qwen3")
    # Files written by `save_pretrained` keep null where another key decides: the generation file wins as in generate().
    eos = Fields(generation, "generation_config.json").tokens("eos_token_id") or fields.tokens("eos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", _DEFAULT_KV_HEADS.get(architecture, heads)),
        head_dim=fields.integer("head_dim", _DEFAULT_HEAD_DIM.get(architecture, hidden // max(1, heads))),
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        sliding_window=window,
        sliding_layers=sliding,
        qkv_bias=bias or architecture == "qwen2",
        o_bias=bias,
        mlp_bias=fields.flag("mlp_bias", default=False) and architecture == "llama",
        qk_norm=architecture == "qwen3",
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=False),
        max_position=max_position,
        bos_token_id=fields.token("bos_token_id"),
        eos_token_ids=eos,
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
    )


def _architecture(fields: Fields) -> str:
    known = ", ".join(ARCHITECTURES)
    architecture = fields.text("model_type", "unnamed")
    if architecture not in ARCHITECTURES:
        raise ModelError(f"{_WHERE}: the architecture {architecture!r} is not implemented; known: {known}.")
    classes = fields.values.get("architectures")
    if classes and _CLASSES[architecture] not in classes:
        raise ModelError(f"{_WHERE}: {classes} is not a text generator; known: {', '.join(_CLASSES.values())}.")
    return architecture


def _refuse_unimplemented(fields: Fields) -> None:
    fields.must_be("hidden_act", "silu", "swish")
    fields.must_be("partial_rotary_factor", 1, 1.0)
    fields.must_be("is_encoder_decoder", False)
    fields.must_be("add_cross_attention", False)
    if quantization := fields.values.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"{_WHERE}: quantized safetensors ({method}) are not implemented; "
            "use the unquantized model or a GGUF file of it."
        )


def _sliding(fields: Fields, architecture: str, layers: int) -> tuple[int | None, tuple[bool, ...]]:
    """Window and which layers use it, by the rules of each transformers class."""
    full = (None, (False,) * layers)
    if architecture == "mistral":
        raw = fields.values
        if raw.get("sliding_window", 4096) is None:
            return full
        return fields.integer("sliding_window", 4096), (True,) * layers
    if architecture == "llama" or not fields.flag("use_sliding_window", default=False):
        return full
    if fields.values.get("sliding_window", 4096) is None:
        return full
    types = fields.values.get("layer_types")
    if types is None:
        first = fields.integer("max_window_layers", 28)
        sliding = tuple(layer >= first for layer in range(layers))
    elif isinstance(types, list) and set(types) <= {"full_attention", "sliding_attention"}:
        sliding = tuple(kind == "sliding_attention" for kind in types)
    else:
        raise ModelError(f"{_WHERE}: layer_types may hold full_attention and sliding_attention, not {types!r}.")
    return (fields.integer("sliding_window", 4096) if any(sliding) else None), sliding


def _rope(fields: Fields, max_position: int) -> tuple[float, RopeScaling | None]:
    raw = fields.values.get("rope_parameters") or fields.values.get("rope_scaling") or {}
    if not isinstance(raw, dict) or any(isinstance(value, dict) for value in raw.values()):
        raise ModelError(f"{_WHERE}: rotary settings per layer type are not implemented.")
    rope = Fields(raw, f"{_WHERE} rope settings")
    rope.must_be("partial_rotary_factor", 1, 1.0)
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in _ROPE_TYPES:
        raise ModelError(f"{_WHERE}: rope type {kind!r} is not implemented; known: {', '.join(_ROPE_TYPES)}.")
    original = rope.integer("original_max_position_embeddings", max_position)
    if kind == "linear":
        return theta, LinearScaling(rope.number("factor"))
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        return theta, Llama3Scaling(rope.number("factor"), low, high, original)
    return theta, (_yarn(rope, original, max_position) if kind == "yarn" else None)


def _yarn(rope: Fields, original: int, max_position: int) -> YarnScaling:
    factor = rope.number("factor", max_position / original)
    mscale, mscale_all = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    default = yarn_magnitude(factor)
    if mscale and mscale_all:
        default = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all)
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=rope.number("beta_fast", 32.0) or 32.0,
        beta_slow=rope.number("beta_slow", 1.0) or 1.0,
        attention_factor=rope.number("attention_factor", default),
        truncate=rope.flag("truncate", default=True),
    )


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's correction of the attention temperature, applied to cos and sin (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
