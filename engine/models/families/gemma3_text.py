"""Gemma 3 (Gemma Team 2025, arXiv 2503.19786), its text: normed heads in place of soft caps, five windows to a layer that sees all,
and positions turned by another base where there is a window."""

from configs.model.gguf import GgufRules, window_on_all_but_every
from configs.model.hf import HfRules, window_but_every
from configs.model.hf_rope import WindowRope
from configs.model.scales import ScaleRules, given, inverse_root_of, root_of
from engine.models.families.gemma2 import NORMED_TWICE, scale_by_size
from engine.models.family import Family

FAMILY = Family(
    name="gemma3_text",
    hf=HfRules(
        generator="Gemma3ForCausalLM",
        max_position=131072,
        kv_heads=4,
        head_dim=256,
        hidden_act=("gelu_pytorch_tanh",),
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        qk_norm=True,
        window=window_but_every(6, period_key="sliding_window_pattern"),
        rope_theta=1e6,
        window_rope=WindowRope("rope_local_base_freq", 1e4),
        scales=ScaleRules(
            embedding_scale=root_of("hidden_size"),
            attention_scale=inverse_root_of("query_pre_attn_scalar", 256.0),
            attention_soft_cap=given("attn_logit_softcapping"),
            final_soft_cap=given("final_logit_softcapping"),
        ),
        tied=True,
        keys={"hidden_act": "hidden_activation"},
    ),
    gguf="gemma3",
    gguf_rules=GgufRules(
        window=window_on_all_but_every(6, 4096),
        window_theta=1e4,
        scales=ScaleRules(
            embedding_scale=root_of("embedding_length"),
            attention_scale=scale_by_size(62),
            final_soft_cap=given("final_logit_softcapping"),
        ),
    ),
    activation="gelu_tanh",
    norm_offset=1.0,
    layer=NORMED_TWICE,
)
