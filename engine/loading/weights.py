"""The tensors of a loaded model, in the form the decoder computes with."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One layer, fp32. Matrices are [out, in]; q, k, v are stacked along rows in this order, then gate and up."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 * kv_heads) * dim, hidden]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # [heads + kv_heads, dim]: the queries' norm for each query head, then the keys'
    o: Tensor  # [hidden, heads * dim]
    o_bias: Tensor | None
    post_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A whole model, fp32. `head` is `embedding` itself where the model ties them."""

    embedding: Tensor  # [vocab, hidden]
    layers: list[LayerWeights]
    final_norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]
    rope_factors: Tensor | None = None  # [dim / 2], see `engine.models.rope`
