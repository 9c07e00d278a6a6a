"""Mistral 7B (Jiang et al. 2023, arXiv 2310.06825): Llama with a sliding window on every layer. llama.cpp writes it as `llama`."""

from configs.model.hf import HfRules, window_on_all_layers
from engine.models.family import Family

FAMILY = Family(
    name="mistral",
    hf=HfRules(generator="MistralForCausalLM", max_position=131072, kv_heads=8, window=window_on_all_layers),
)
