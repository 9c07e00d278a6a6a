"""Qwen3 (Yang et al. 2025, arXiv 2505.09388), dense models: queries and keys are normed head by head."""

from configs.model.hf import HfRules, window_by_layer
from engine.models.family import Family

FAMILY = Family(
    name="qwen3",
    hf=HfRules(
        generator="Qwen3ForCausalLM",
        max_position=32768,
        head_dim=128,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        window=window_by_layer,
    ),
    gguf="qwen3",
)
