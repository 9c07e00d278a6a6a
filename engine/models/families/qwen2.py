"""Qwen2 and Qwen2.5 (Yang et al. 2024, arXiv 2407.10671): biases of q, k and v, a sliding window on some layers."""

from configs.model.hf import HfRules, window_by_layer
from engine.models.family import Family

FAMILY = Family(
    name="qwen2",
    hf=HfRules(generator="Qwen2ForCausalLM", max_position=32768, qkv_bias=True, window=window_by_layer),
    gguf="qwen2",
)
