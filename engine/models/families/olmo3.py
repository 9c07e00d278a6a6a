"""OLMo 3 (OLMo Team 2025): OLMo 2 with a window on three of four layers, of which only the others stretch positions.

llama.cpp writes it as `olmo2`.
"""

from configs.model.hf import HfRules, window_but_every
from configs.model.hf_rope import WindowRope
from engine.models.families.olmo2 import NORMED_AFTER
from engine.models.family import Family

FAMILY = Family(
    name="olmo3",
    hf=HfRules(
        generator="Olmo3ForCausalLM",
        max_position=2048,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        rms_norm_eps=1e-5,
        window=window_but_every(4),
        rope_theta=5e5,
        window_rope=WindowRope(None, 5e5),
    ),
    layer=NORMED_AFTER,
)
