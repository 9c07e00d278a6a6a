"""Phi-3 and Phi-4 (Abdin et al. 2024, arXiv 2404.14219 and 2412.08905): Llama whose files fuse q, k, v and gate, up."""

from configs.model.gguf import GgufRules
from configs.model.hf import HfRules, window_where_given
from engine.models.family import FUSED_GATE_UP, FUSED_QKV, Family

FAMILY = Family(
    name="phi3",
    hf=HfRules(
        generator="Phi3ForCausalLM",
        max_position=4096,
        window=window_where_given,
        rms_norm_eps=1e-5,
        rotary_factor=1.0,
    ),
    gguf="phi3",
    gguf_rules=GgufRules(partial_rotary=True),
    fused=(FUSED_QKV, FUSED_GATE_UP),
)
