"""SmolLM3 (Hugging Face 2025): Llama in which every fourth layer turns nothing (Yang et al. 2025, arXiv 2501.18795)."""

from configs.model.fields import Fields
from configs.model.gguf import GgufRules
from configs.model.hf import HfRules, Window, no_window, window_by_layer
from configs.model.source import ModelError
from engine.models.family import Family


def _every_fourth(fields: Fields, sliding: tuple[bool, ...]) -> tuple[int, ...]:
    """`no_rope_layers` has a 1 for each layer that is rotated; else one in `no_rope_layer_interval` is not."""
    layers, given = len(sliding), fields.value("no_rope_layers")
    if given is None:
        every = fields.integer("no_rope_layer_interval", 4)
        if every < 1:
            raise fields.refusal(f"no_rope_layer_interval is {every}; it must be at least 1")
        return tuple(layer for layer in range(layers) if (layer + 1) % every == 0)
    if not isinstance(given, list) or len(given) < layers or any(turned not in (0, 1) for turned in given):
        raise ModelError(f"config.json: no_rope_layers is {given!r}, not a 0 or a 1 for each of {layers} layers.")
    return tuple(layer for layer in range(layers) if not given[layer])


def _window(fields: Fields, layers: int) -> Window:
    """A window on the layers that `layer_types` names, else on those that turn nothing, and only if it is switched on."""
    if not fields.flag("use_sliding_window", default=False) or fields.value("sliding_window") is None:
        return no_window(fields, layers)
    if fields.value("layer_types") is not None:
        return window_by_layer(fields, layers)
    unrotated = _every_fourth(fields, (False,) * layers)
    return (fields.integer("sliding_window") if unrotated else None), tuple(i in unrotated for i in range(layers))


def _every_fourth_in_gguf(_fields: Fields, sliding: tuple[bool, ...]) -> tuple[int, ...]:
    """llama.cpp knows them by the architecture."""
    return tuple(range(3, len(sliding), 4))


FAMILY = Family(
    name="smollm3",
    hf=HfRules(
        generator="SmolLM3ForCausalLM",
        max_position=32768,
        kv_heads=4,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        window=_window,
        rope_theta=2e6,
        unrotated=_every_fourth,
        tied=True,
    ),
    gguf="smollm3",
    gguf_rules=GgufRules(unrotated=_every_fourth_in_gguf),
    gguf_pairs_adjacent=True,
)
