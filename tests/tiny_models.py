"""Tiny random models saved by transformers: every switch of the decoder, small enough for a test."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}


@dataclass(frozen=True)
class Tiny:
    """A recipe: transformers' classes and what differs from `SHAPE`.

    `part` is the word more in the config's name where it is a part of another's.
    """

    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    part: str = ""

    def config(self) -> Any:
        return getattr(transformers, f"{self.kind}{self.part}Config")(**(SHAPE | self.changes))


def rope(kind: str, theta: float = 10000.0, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **values}}


LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=128)
BY_LAYER = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def rope_by_layer(**full: Any) -> dict[str, Any]:
    sliding = {"rope_type": "default", "rope_theta": 100.0}
    return {"rope_parameters": {"full_attention": {"rope_theta": 5e4, **full}, "sliding_attention": sliding}}


TINY: dict[str, Tiny] = {
    "llama": Tiny("Llama"),
    "llama-tied": Tiny("Llama", {"tie_word_embeddings": True}),
    "llama-biased": Tiny("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-one-kv-head": Tiny("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 80}),
    "llama-linear": Tiny("Llama", rope("linear", factor=4.0)),
    "llama-llama3": Tiny("Llama", LLAMA3),
    "llama-yarn": Tiny("Llama", YARN),
    "llama-yarn-mscale": Tiny(
        "Llama",
        rope("yarn", factor=8.0, original_max_position_embeddings=64, mscale=1.2, mscale_all_dim=0.7, beta_fast=16.0),
    ),
    "mistral": Tiny("Mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral-sliding": Tiny("Mistral", {"sliding_window": 24}),
    "qwen2": Tiny("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": Tiny("Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}),
    "qwen3": Tiny("Qwen3", {"head_dim": 32}),
    "qwen3-biased": Tiny("Qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
    "gemma": Tiny("Gemma", {"head_dim": 32}),
    "gemma2": Tiny(
        "Gemma2",
        {"head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 3, "attn_logit_softcapping": 5.0}
        | {"final_logit_softcapping": 4.0},
    ),
    "gemma3": Tiny(
        "Gemma3",
        {"head_dim": 32, "query_pre_attn_scalar": 24, **BY_LAYER, **rope_by_layer(rope_type="linear", factor=4.0)},
        part="Text",
    ),
    "smollm3": Tiny("SmolLM3", {"pad_token_id": 0, "no_rope_layer_interval": 2, "attention_bias": True}),
    "smollm3-sliding": Tiny(
        "SmolLM3", {"pad_token_id": 0, "no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 24}
    ),
    "granite": Tiny(
        "Granite",
        {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4, "logits_scaling": 2.0},
    ),
    "phi3": Tiny("Phi3", {"pad_token_id": 0, **rope("default", partial_rotary_factor=0.5)}),
    "phi3-sliding": Tiny("Phi3", {"pad_token_id": 0, "sliding_window": 24}),
    "olmo2": Tiny("Olmo2", {"pad_token_id": 0}),
    "olmo3": Tiny(
        "Olmo3",
        {"pad_token_id": 0, **BY_LAYER}
        | rope_by_layer(rope_type="yarn", factor=4.0, original_max_position_embeddings=128),
    ),
}


def build(name: str) -> PreTrainedModel:
    """The model of recipe `name`, fp32, with weights large enough for its logits to tell tokens apart."""
    return made(TINY[name], sorted(TINY).index(name))


def made(tiny: Tiny, seed: int) -> PreTrainedModel:
    """The model of a recipe, likewise."""
    model = getattr(transformers, f"{tiny.kind}ForCausalLM")(tiny.config()).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        offset = tiny.kind.startswith("Gemma")  # whose norms are stored as w - 1
        mean = 1.0 if key.endswith("norm.weight") and not offset else 0.0
        parameter.data.normal_(mean, 0.2, generator=generator)
    return model


def save(model: PreTrainedModel, folder: Path, **options: Any) -> Path:
    """Write config and safetensors; `options` go to `save_pretrained` (shard size, for one)."""
    model.save_pretrained(folder, **options)
    return folder


Saver = Callable[[str], tuple[PreTrainedModel, Path]]
