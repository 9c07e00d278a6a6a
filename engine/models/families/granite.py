"""Granite 3 (IBM 2024), dense models: Llama with factors on embeddings, scores, residual and logits."""

from configs.model.gguf import GgufRules
from configs.model.hf import HfRules
from configs.model.scales import ScaleRules, given, inverse_of
from engine.models.family import Family

FAMILY = Family(
    name="granite",
    hf=HfRules(
        generator="GraniteForCausalLM",
        max_position=2048,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        mlp_bias="mlp_bias",
        scales=ScaleRules(
            embedding_scale=given("embedding_multiplier"),
            attention_scale=given("attention_multiplier", 1.0),
            residual_scale=given("residual_multiplier"),
            logit_scale=inverse_of("logits_scaling"),
        ),
    ),
    gguf="granite",
    gguf_rules=GgufRules(
        scales=ScaleRules(
            embedding_scale=given("embedding_scale"),
            attention_scale=given("attention.scale"),
            residual_scale=given("residual_scale"),
            logit_scale=inverse_of("logit_scale"),
        )
    ),
    gguf_pairs_adjacent=True,
)
