"""`config.json` and `generation_config.json` of a Hugging Face folder, read into a `ModelConfig`.

Keys left out take the defaults of the transformers classes, because older checkpoints rely on them. What we do not
compute is refused here: a model must never run with a part of its arithmetic ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.model.config import ModelConfig
from configs.model.ends import TokenNames
from configs.model.fields import Fields
from configs.model.hf_rope import WindowRope, read_rope, read_rotary_dim
from configs.model.scales import NO_SCALES, ScaleRules
from configs.model.source import ModelError

_WHERE, _GENERATION = "config.json", "generation_config.json"

# Keys of arithmetic that not all classes have, and the values that change nothing. One that a family does not read is refused.
_ARITHMETIC: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1,),
    "query_pre_attn_scalar": (),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "embedding_multiplier": (1,),
    "attention_multiplier": (),
    "residual_multiplier": (1,),
    "logits_scaling": (1,),
    "logit_scale": (1,),
    "clip_qkv": (),
    "use_parallel_residual": (False,),
    "use_bidirectional_attention": (False,),
    "use_qk_norm": (False,),
    "no_rope_layers": (),
    "rope_local_base_freq": (),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0, 1),
}

Window = tuple[int | None, tuple[bool, ...]]  # newest tokens seen, and which layers see no more
WindowRule = Callable[[Fields, int], Window]  # reads it off a model's description, given its number of layers


def no_window(fields: Fields, layers: int) -> Window:
    """Every layer sees all tokens, whatever the file says of windows."""
    del fields
    return None, (False,) * layers


def window_on_all_layers(fields: Fields, layers: int) -> Window:
    """One window for all layers; 4096 unless the file says otherwise, none where it says null."""
    if fields.value("sliding_window", 4096) is None:
        return no_window(fields, layers)
    return fields.integer("sliding_window", 4096), (True,) * layers


def window_where_given(fields: Fields, layers: int) -> Window:
    """One window for all layers, if the file gives one."""
    return no_window(fields, layers) if fields.value("sliding_window") is None else window_on_all_layers(fields, layers)


def window_but_every(
    period: int, key: str = "sliding_window", default: int = 4096, period_key: str | None = None
) -> WindowRule:
    """A window on the layers that `layer_types` names, else on all but each `period`-th, or as often as `period_key` says."""

    def window(fields: Fields, layers: int) -> Window:
        if fields.value(key, default) is None:
            return no_window(fields, layers)
        every = fields.integer(period_key, period) if period_key else period
        if every < 1:
            raise fields.refusal(f"{period_key} is {every}; it must be at least 1")
        sliding = _by_type(fields) or tuple((layer + 1) % every != 0 for layer in range(layers))
        return (fields.integer(key, default) if any(sliding) else None), sliding

    return window


def window_by_layer(fields: Fields, layers: int) -> Window:
    """A window on the layers that `layer_types` names, else on those from `max_window_layers` on, and only if it is switched on."""
    if not fields.flag("use_sliding_window", default=False) or fields.value("sliding_window", 4096) is None:
        return no_window(fields, layers)
    sliding = _by_type(fields)
    if sliding is None:
        first = fields.integer("max_window_layers", 28)
        sliding = tuple(layer >= first for layer in range(layers))
    return (fields.integer("sliding_window", 4096) if any(sliding) else None), sliding


def _by_type(fields: Fields) -> tuple[bool, ...] | None:
    """Which layers `layer_types` gives a window; None: the file does not have it."""
    types = fields.value("layer_types")
    if types is None:
        return None
    if isinstance(types, list) and all(kind in ("full_attention", "sliding_attention") for kind in types):
        return tuple(kind == "sliding_attention" for kind in types)
    raise ModelError(f"{_WHERE}: layer_types may hold full_attention and sliding_attention, not {types!r}.")


UnrotatedRule = Callable[[Fields, tuple[bool, ...]], tuple[int, ...]]  # by which layers have a sliding window


def all_rotated(fields: Fields, sliding: tuple[bool, ...]) -> tuple[int, ...]:
    """Every layer turns its queries and keys."""
    del fields, sliding
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HfRules:
    """How the transformers class of one model family reads a `config.json`.

    Attributes:
        generator: its class that generates text, as `architectures` names it.
        max_position: `max_position_embeddings` where it is left out.
        kv_heads: `num_key_value_heads` where it is left out; None: one for each head.
        head_dim: `head_dim` where it is left out; None: hidden size / heads.
        hidden_act: what the activation may be called; the first one is meant where it is left out.
        qkv_bias: fixed by the class, or the key of the flag.
        o_bias: likewise.
        mlp_bias: likewise.
        qk_norm: whether the class norms queries and keys.
        window: which layers have a sliding window.
        rms_norm_eps: where it is left out.
        rope_theta: likewise.
        window_rope: how layers with a sliding window are rotated, if not as the others.
        unrotated: which layers turn nothing.
        rotary_factor: `partial_rotary_factor` where it is left out; None: the class rotates whole heads and reads no factor.
        scales: scales and soft caps.
        tied: `tie_word_embeddings` where it is left out.
        keys: what the class calls values that are usually called otherwise, as in {"hidden_act": "hidden_activation"}.
    """

    generator: str
    max_position: int
    kv_heads: int | None = None
    head_dim: int | None = None
    hidden_act: tuple[str, ...] = ("silu", "swish")
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    window: WindowRule = no_window
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    window_rope: WindowRope | None = None
    unrotated: UnrotatedRule = all_rotated
    rotary_factor: float | None = None
    scales: ScaleRules = NO_SCALES
    tied: bool = False
    keys: Mapping[str, str] = field(default_factory=dict)


def config_from_hf(
    raw: dict[str, Any], generation: dict[str, Any], names: TokenNames, architecture: str, rules: HfRules
) -> ModelConfig:
    """Build a `ModelConfig` from the two JSON objects (`generation` may be empty) by the rules of its family.

    `names` is what the folder's tokenizer says of its tokens.

    Raises:
        ModelError: a missing value, or a feature that is not implemented.
    """
    fields = Fields(raw, _WHERE, rules.keys)
    _refuse_unimplemented(fields, rules)
    layers, heads = fields.layers("num_hidden_layers"), fields.integer("num_attention_heads")
    hidden = fields.integer("hidden_size")
    max_position = fields.integer("max_position_embeddings", rules.max_position)
    rotation, window_rotation = read_rope(fields, max_position, rules.rope_theta, rules.window_rope)
    window, sliding = rules.window(fields, layers)
    unrotated = rules.unrotated(fields, sliding)
    head_dim = fields.integer("head_dim", rules.head_dim or hidden // max(1, heads))
    rotary_dim, scales = read_rotary_dim(fields, rules.rotary_factor, head_dim), rules.scales.read(fields, head_dim)
    fields.refuse_unread(_ARITHMETIC)
    vocab_size = fields.integer("vocab_size")
    eos = ((_GENERATION, Fields(generation, _GENERATION)), (_WHERE, fields))
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", rules.kv_heads or heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", rules.rms_norm_eps),
        rope_theta=rotation.theta,
        rope_scaling=rotation.scaling,
        sliding_window=window,
        sliding_layers=sliding,
        qkv_bias=_flag(fields, rules.qkv_bias),
        o_bias=_flag(fields, rules.o_bias),
        mlp_bias=_flag(fields, rules.mlp_bias),
        qk_norm=rules.qk_norm,
        tie_word_embeddings=fields.flag("tie_word_embeddings", default=rules.tied),
        max_position=max_position,
        ends=names.end_tokens([(file, values.tokens("eos_token_id")) for file, values in eos], vocab_size),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        rotary_dim=rotary_dim,
        window_rotation=window_rotation if window and window_rotation != rotation else None,
        unrotated_layers=unrotated,
        scales=scales,
    )


def _flag(fields: Fields, rule: bool | str) -> bool:
    return rule if isinstance(rule, bool) else fields.flag(rule, default=False)


def _refuse_unimplemented(fields: Fields, rules: HfRules) -> None:
    classes = fields.values.get("architectures")
    if classes and not (isinstance(classes, list) and all(isinstance(name, str) for name in classes)):
        raise ModelError(f"{_WHERE}: architectures is {classes!r}, not a list of names.")
    if classes and rules.generator not in classes:
        raise ModelError(f"{_WHERE}: {classes} is not a text generator; known: {rules.generator}.")
    fields.must_be("hidden_act", *rules.hidden_act)
    fields.must_be("is_encoder_decoder", False)
    fields.must_be("add_cross_attention", False)
    if quantization := fields.values.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise ModelError(
            f"{_WHERE}: quantized safetensors ({method}) are not implemented; "
            "use the unquantized model or a GGUF file of it."
        )
