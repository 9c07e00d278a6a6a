"""A model's shape from a Hugging Face `config.json`, of any family of decoders: only what costs time or room is read.

A window on some layers is not modelled: their KV and their attention count as if all tokens were seen.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.model.fields import Fields, read_json
from loadtest.simulate.specs import ModelSpec, SpecError

# What classes call the same thing; the first one that is there counts.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_head_kv"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim"),
    "position": ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "chosen": ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "experts_per_token", "moe_k"),
    "expert_size": ("moe_intermediate_size", "expert_ffn_hidden_size"),
    "shared_size": ("shared_expert_intermediate_size", "shared_intermediate_size"),
    "shared": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
    "dense": ("first_k_dense_replace", "moe_layer_start_index"),
}
_TWO_MATRICES = frozenset(
    ("gpt2", "gpt_neox", "gptj", "opt", "bloom", "mpt", "falcon", "phi", "starcoder2", "gpt_bigcode")
)
_TIED = ("gemma", "cohere", "gpt2", "opt", "bloom", "falcon")  # families whose `config.json` leaves it out
_BITS = {"float32": 32.0, "float16": 16.0, "bfloat16": 16.0}
# Bits of a quantized weight with its scales, and the type of the products.
_QUANTIZED: Mapping[str, tuple[float, str]] = {
    "fp8": (8.0, "fp8"),
    "fbgemm_fp8": (8.0, "fp8"),
    "mxfp4": (4.25, "bf16"),
    "gptq": (4.25, "bf16"),
    "awq": (4.25, "bf16"),
    "bitsandbytes": (4.25, "bf16"),
}
# Keys of what is not modelled, where their value is none of these that change nothing.
_REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "kv_lora_rank": ("multi-head latent attention", (None, 0)),
    "ffn_config": ("a description of its MLPs in another form", (None,)),
    "mamba_d_state": ("state spaces", (None,)),
    "ssm_cfg": ("state spaces", (None,)),
    "layers_block_type": ("layers of several kinds", (None,)),
    "hybrid_override_pattern": ("layers of several kinds", (None,)),
    "linear_num_value_heads": ("linear attention", (None,)),
    "decoder_sparse_step": ("experts on some layers", (None, 1)),
}


def read_config_json(path: Path, name: str) -> ModelSpec:
    """The shape in the file at `path`.

    Raises:
        ModelError: the file cannot be read, or lacks something.
        SpecError: it has what is not modelled.
    """
    content = read_json(path)
    if isinstance(inner := content.get("text_config"), dict):  # of models that see or hear as well
        content = {**content, **inner}
    fields = Fields(content, str(path))
    for key, (what, harmless) in _REFUSED.items():
        if content.get(key) not in harmless:
            raise SpecError(f"{path}: it has {what} ({key}), which is not modelled")
    heads, hidden = _number(fields, "heads"), _number(fields, "hidden")
    dense_size = _number(fields, "intermediate", 4 * hidden)
    bits, compute = _weights(fields, path)
    family = fields.text("model_type", "")
    return ModelSpec(
        name=name,
        layers=_number(fields, "layers"),
        hidden_size=hidden,
        intermediate_size=_number(fields, "expert_size", dense_size) if _experts(fields) > 1 else dense_size,
        mlp_matrices=2 if family in _TWO_MATRICES else 3,
        heads=heads,
        kv_heads=_kv_heads(fields, heads),
        head_dim=fields.integer("head_dim", hidden // max(1, heads)),
        vocab_size=fields.integer("vocab_size"),
        tied_head=fields.flag("tie_word_embeddings", family.startswith(_TIED)),
        max_position=_number(fields, "position"),
        weight_bits=bits,
        head_bits=16 if bits < 16 else bits,
        compute=compute,
        kv_bits=32 if bits > 16 else 16,
        **_mixture(fields, dense_size),
    )


def _kv_heads(fields: Fields, heads: int) -> int:
    if fields.flag("multi_query", default=False) and not fields.flag("new_decoder_architecture", default=False):
        return 1  # of older models, whose classes read nothing else then
    return _number(fields, "kv_heads", heads)


def _experts(fields: Fields) -> int:
    return _number(fields, "experts", 1) or 1


def _mixture(fields: Fields, dense_size: int) -> dict[str, int]:
    """What a mixture of experts has beside; nothing of a dense model."""
    experts = _experts(fields)
    if experts == 1:
        return {}
    expert_size = _number(fields, "expert_size", dense_size)
    if period := fields.integer("interleave_moe_layer_step", 0):  # Llama 4's classes
        layers = _number(fields, "layers")
        dense, dense_size = layers - layers // period, fields.integer("intermediate_size_mlp", dense_size)
        return _experts_of(fields, experts, dense, dense_size, expert_size)
    only = fields.value("mlp_only_layers")
    dense = len(only) if isinstance(only, list) and only else _number(fields, "dense", 0)
    shared = _number(fields, "shared_size", 0) or _number(fields, "shared", 0) * expert_size
    return _experts_of(fields, experts, dense, dense_size, shared)


def _experts_of(fields: Fields, experts: int, dense: int, dense_size: int, shared: int) -> dict[str, int]:
    return {
        "experts": experts,
        "experts_per_token": _number(fields, "chosen"),
        "dense_layers": dense,
        "dense_intermediate_size": dense_size if dense else 0,
        "shared_intermediate_size": shared,
    }


def _weights(fields: Fields, path: Path) -> tuple[float, str]:
    """Bits of a weight, and the type in which products are computed."""
    quantized: Any = fields.value("quantization_config")
    if isinstance(quantized, dict):
        method = str(quantized.get("quant_method"))
        if method not in _QUANTIZED:
            raise SpecError(f"{path}: weights by {method} are not known; known are {', '.join(_QUANTIZED)}")
        bits, compute = _QUANTIZED[method]
        own = quantized.get("bits")
        return (own + 0.25 if isinstance(own, int) and own < 16 else bits), compute
    kind = fields.text("dtype", fields.text("torch_dtype", "bfloat16"))
    if kind not in _BITS:
        raise SpecError(f"{path}: weights of type {kind} are not known; known are {', '.join(_BITS)}")
    return _BITS[kind], "fp32" if kind == "float32" else "bf16"


def _number(fields: Fields, what: str, default: int | None = None) -> int:
    """The number under the first of its names that is there."""
    names = _NAMES[what]
    there = [name for name in names if fields.value(name) is not None]
    return fields.integer(there[0] if there else names[0], default)
