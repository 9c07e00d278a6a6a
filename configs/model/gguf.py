"""Metadata of a GGUF file, read into a `ModelConfig`.

llama.cpp writes Mistral models as `llama`, and Llama 3.1's rotary scaling as a tensor (`rope_freqs.weight`) that the
loader reads; the rest of the arithmetic follows from metadata and from which tensors there are.
"""

from dataclasses import dataclass
from typing import Any

from configs.model.config import LinearScaling, ModelConfig, RopeScaling, Rotation, YarnScaling
from configs.model.ends import gguf_ends
from configs.model.fields import Fields
from configs.model.gguf_header import GgufHeader
from configs.model.hf import UnrotatedRule, Window, WindowRule, all_rotated, no_window
from configs.model.hf_rope import yarn_magnitude
from configs.model.pooling import gguf_pooling
from configs.model.scales import NO_SCALES, ScaleRules
from configs.model.source import ModelError

# Keys of arithmetic, and the values that change nothing. One that a family does not read is refused.
_ARITHMETIC: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("attention.scale", "embedding_scale", "residual_scale", "logit_scale", "attention.clamp_kqv"), (0.0, 1.0)
    ),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "attention.sliding_window_pattern": (),
    "rope.freq_base_swa": (),
    "rope.freq_base_local": (),
}


def window_on_every_layer(fields: Fields, layers: int) -> Window:
    """One window for all layers, if the file gives one."""
    window = fields.integer("attention.sliding_window", 0)
    return (window, (True,) * layers) if window else no_window(fields, layers)


def window_on_all_but_every(period: int, default: int) -> WindowRule:
    """A window on all layers but each `period`-th, which llama.cpp knows by the architecture, unless the file says on which."""

    def window(fields: Fields, layers: int) -> Window:
        size, pattern = fields.integer("attention.sliding_window", default), fields.value(_PATTERN, period)
        if isinstance(pattern, list) and len(pattern) == layers and all(isinstance(slides, bool) for slides in pattern):
            sliding = tuple(pattern)
        elif isinstance(pattern, int) and pattern > 0:
            sliding = tuple((layer + 1) % pattern != 0 for layer in range(layers))
        else:
            raise fields.refusal(f"{_PATTERN} is {pattern!r}, neither a number nor true or false for each layer")
        return (size, sliding) if size and any(sliding) else no_window(fields, layers)

    return window


_PATTERN = "attention.sliding_window_pattern"
SAME = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufRules:
    """How llama.cpp's files give what a family varies.

    Attributes:
        window: which layers have a sliding window.
        partial_rotary: whether `rope.dimension_count` may be a part of each head.
        scales: scales and soft caps.
        window_theta: base of the frequencies on layers with a window, unless the file gives one, where nothing scales them; `SAME`:
            that of the others. None: they are rotated as the others.
        unrotated: which layers turn nothing.
        head_norms: whether norms of queries and keys are of each head, where a file has them.
    """

    window: WindowRule = window_on_every_layer
    partial_rotary: bool = False
    scales: ScaleRules = NO_SCALES
    window_theta: float | None = None
    unrotated: UnrotatedRule = all_rotated
    head_norms: bool = True


LIKE_LLAMA = GgufRules()


def config_from_gguf(header: GgufHeader, architecture: str, rules: GgufRules) -> ModelConfig:
    """Build the `ModelConfig` of a model of this `architecture` from a GGUF header, by the rules of its family.

    Raises:
        ModelError: a missing value, or a feature that is not implemented.
    """
    general = Fields(header.metadata, header.path.name)
    fields = _fields_of(general.text("general.architecture"), header)
    _refuse_unimplemented(fields)
    layers, heads = fields.layers("block_count"), fields.integer("attention.head_count")
    hidden, max_position = fields.integer("embedding_length"), fields.integer("context_length")
    head_dim = fields.integer("attention.key_length", hidden // max(1, heads))
    fields.must_be("attention.value_length", head_dim)
    if not rules.partial_rotary:
        fields.must_be("rope.dimension_count", head_dim)
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    (window, sliding), scales = rules.window(fields, layers), rules.scales.read(fields, head_dim)
    rotation = Rotation(fields.number("rope.freq_base", 10000.0), _rope_scaling(fields, max_position))
    window_rotation = None
    if rules.window_theta is not None:
        base = rules.window_theta or rotation.theta
        window_rotation = Rotation(_one_of(fields, "rope.freq_base_swa", "rope.freq_base_local", absent=base))
    fields.refuse_unread(_ARITHMETIC)
    if "token_embd.weight" not in header.tensors:
        raise ModelError(f"{header.path.name} has no tensor token_embd.weight; is this a complete model?")
    vocab_size = header.tensors["token_embd.weight"].shape[0]
    return ModelConfig(
        architecture=architecture,
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope_theta=rotation.theta,
        rope_scaling=rotation.scaling,
        sliding_window=window,
        sliding_layers=sliding,
        qkv_bias="blk.0.attn_q.bias" in header.tensors,
        o_bias="blk.0.attn_output.bias" in header.tensors,
        mlp_bias="blk.0.ffn_gate.bias" in header.tensors,
        qk_norm=rules.head_norms and "blk.0.attn_q_norm.weight" in header.tensors,
        tie_word_embeddings="output.weight" not in header.tensors,
        max_position=max_position,
        ends=gguf_ends(header.metadata, header.path.name, vocab_size),
        dtype="gguf",
        rotary_dim=None if rotary_dim == head_dim else rotary_dim,
        window_rotation=window_rotation if window and window_rotation != rotation else None,
        unrotated_layers=rules.unrotated(fields, sliding),
        scales=scales,
        pooling=gguf_pooling(fields),
    )


def _fields_of(name: str, header: GgufHeader) -> Fields:
    """The architecture's own metadata, without its name as a prefix."""
    prefix = f"{name}."
    own = {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}
    return Fields(own, f"{header.path.name} ({name})")


def _refuse_unimplemented(fields: Fields) -> None:
    fields.must_be("expert_count", 0)
    fields.must_be("attention.causal", True)
    fields.must_be("use_parallel_residual", False)


def _rope_scaling(fields: Fields, max_position: int) -> RopeScaling | None:
    """As llama.cpp reads it: a factor without a type is `linear`, and 0 is no factor."""
    kind = fields.text("rope.scaling.type", "linear")
    factor = _one_of(fields, "rope.scaling.factor", "rope.scale_linear")
    magnitude = _one_of(fields, "rope.scaling.yarn_attn_factor", "rope.scaling.attn_factor")
    if kind in ("none", "linear"):
        if magnitude != 1 or (kind == "none" and factor != 1):
            raise fields.refusal(
                f"rope.scaling.type is {kind!r}, which has no use for a factor of {factor} and an attn_factor of {magnitude}"
            )
        return None if factor == 1 else LinearScaling(factor)
    if kind != "yarn":
        fields.must_be("rope.scaling.type", "none", "linear", "yarn")
    fields.must_be("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    fields.must_be("rope.scaling.yarn_log_multiplier", 0.0)
    return YarnScaling(
        factor=factor,
        original_max_position=fields.integer("rope.scaling.original_context_length", max_position),
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=magnitude * yarn_magnitude(factor),
        truncate=True,
    )


def _one_of(fields: Fields, *keys: str, absent: float = 1.0) -> float:
    """The number that a file gives under one of these names or under all; `absent` where it is left out or 0."""
    given = {key: factor for key in keys if (factor := fields.number(key, 0.0))}
    if len(set(given.values())) > 1:
        raise fields.refusal(
            " and ".join(f"{key}={factor}" for key, factor in given.items()) + " contradict each other"
        )
    return next(iter(given.values()), absent)
