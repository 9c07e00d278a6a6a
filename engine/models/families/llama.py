"""Llama (Touvron et al. 2023, arXiv 2302.13971), and what shares its class: Llama 2 and 3, SmolLM2, TinyLlama."""

from configs.model.hf import HfRules
from engine.models.family import Family

FAMILY = Family(
    name="llama",
    hf=HfRules(
        generator="LlamaForCausalLM",
        max_position=2048,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
    ),
    gguf="llama",
    gguf_pairs_adjacent=True,
)
