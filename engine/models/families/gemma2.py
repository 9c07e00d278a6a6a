"""Gemma 2 (Gemma Team 2024, arXiv 2408.00118): norms around attention and MLP, soft caps, a window on every second layer."""

import math

from configs.model.fields import Fields
from configs.model.gguf import GgufRules, window_on_all_but_every
from configs.model.hf import HfRules, window_but_every
from configs.model.scales import Number, ScaleRules, given, inverse_root_of, root_of
from engine.models.family import AFTER_NORMS, LAYER, Family, renamed

NORMED_TWICE = renamed((*LAYER, *AFTER_NORMS), {"post_norm": "pre_feedforward_layernorm"})


def scale_by_size(largest: int) -> Number:
    """llama.cpp's files do not say what attention scores are divided by: a head's width, but in the largest model, known by its
    number of layers, hidden size / heads."""

    def number(fields: Fields) -> float | None:
        if fields.layers("block_count") != largest:
            return None
        width = fields.integer("embedding_length") // max(1, fields.integer("attention.head_count"))
        return math.pow(max(1, width), -0.5)

    return number


FAMILY = Family(
    name="gemma2",
    hf=HfRules(
        generator="Gemma2ForCausalLM",
        max_position=8192,
        kv_heads=4,
        head_dim=256,
        hidden_act=("gelu_pytorch_tanh",),
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        window=window_but_every(2),
        scales=ScaleRules(
            embedding_scale=root_of("hidden_size"),
            attention_scale=inverse_root_of("query_pre_attn_scalar", 256.0),
            attention_soft_cap=given("attn_logit_softcapping", 50.0),
            final_soft_cap=given("final_logit_softcapping", 30.0),
        ),
        tied=True,
        keys={"hidden_act": "hidden_activation"},
    ),
    gguf="gemma2",
    gguf_rules=GgufRules(
        window=window_on_all_but_every(2, 4096),
        scales=ScaleRules(
            embedding_scale=root_of("embedding_length"),
            attention_scale=scale_by_size(46),
            attention_soft_cap=given("attn_logit_softcapping", 50.0),
            final_soft_cap=given("final_logit_softcapping", 30.0),
        ),
    ),
    activation="gelu_tanh",
    norm_offset=1.0,
    layer=NORMED_TWICE,
)
