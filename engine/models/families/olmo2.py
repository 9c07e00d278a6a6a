"""OLMo 2 (OLMo Team 2025, arXiv 2501.00656): norms of what attention and MLP give, none before them; queries and keys are normed
over all heads."""

from configs.model.gguf import SAME, GgufRules, window_on_all_but_every
from configs.model.hf import HfRules
from engine.models.family import AFTER_NORMS, LAYER, WIDE_NORMS, Family, without

NORMED_AFTER = (*without(LAYER, "input_norm", "post_norm", "q_norm", "k_norm"), *WIDE_NORMS, *AFTER_NORMS)

FAMILY = Family(
    name="olmo2",
    hf=HfRules(
        generator="Olmo2ForCausalLM",
        max_position=2048,
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        rms_norm_eps=1e-5,
    ),
    gguf="olmo2",
    # llama.cpp writes OLMo 3 under the same name, with a window.
    gguf_rules=GgufRules(head_norms=False, window=window_on_all_but_every(4, 0), window_theta=SAME),
    layer=NORMED_AFTER,
)
