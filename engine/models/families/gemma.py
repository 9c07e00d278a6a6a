"""Gemma (Gemma Team 2024, arXiv 2403.08295): Llama with wide heads, scaled embeddings, norms stored as w - 1, a gate of gelu."""

from configs.model.gguf import GgufRules
from configs.model.hf import HfRules
from configs.model.scales import ScaleRules, root_of
from engine.models.family import Family

FAMILY = Family(
    name="gemma",
    hf=HfRules(
        generator="GemmaForCausalLM",
        max_position=8192,
        kv_heads=16,
        head_dim=256,
        hidden_act=("gelu_pytorch_tanh", "gelu"),  # which means the same here, in old files
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        scales=ScaleRules(embedding_scale=root_of("hidden_size")),
        tied=True,
    ),
    gguf="gemma",
    gguf_rules=GgufRules(scales=ScaleRules(embedding_scale=root_of("embedding_length"))),
    activation="gelu_tanh",
    norm_offset=1.0,
)
