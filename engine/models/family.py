"""What a model family is: names and axes of its tensors, and the variants of its arithmetic. No torch.

Everything else follows from it: shapes, bytes and shards from the axes, what a file must hold from the names, what a backend has
to compute from the variants. A backend that lacks a variant says so before anything is loaded (`engine.models.abilities`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

from configs.model.config import ModelConfig
from configs.model.gguf import LIKE_LLAMA, GgufRules
from configs.model.hf import HfRules
from configs.model.scales import NO_SCALES

Shape = tuple[int, ...]
# Of an MLP's gate; gelu uses the error function, gelu_tanh approximates it by tanh.
Activation = Literal["silu", "gelu", "gelu_tanh"]
Flag = Literal["qkv_bias", "o_bias", "mlp_bias", "qk_norm", "own_head"]  # of `ModelConfig`
Part = Literal["weight", "bias"]
PARTS: tuple[Part, ...] = ("weight", "bias")


class Axis(Enum):
    """What the entries along one dimension of a tensor belong to. All but the first two are split over ranks."""

    HIDDEN = "hidden"
    HEAD_DIM = "head_dim"
    QUERIES = "queries"
    KEYS = "keys"
    INNER = "inner"
    VOCABULARY = "vocabulary"

    def size(self, config: ModelConfig) -> int:
        """How many entries the whole model has along this axis."""
        sizes = {
            Axis.HIDDEN: config.hidden_size,
            Axis.HEAD_DIM: config.head_dim,
            Axis.QUERIES: config.heads * config.head_dim,
            Axis.KEYS: config.kv_heads * config.head_dim,
            Axis.INNER: config.intermediate_size,
            Axis.VOCABULARY: config.vocab_size,
        }
        return sizes[self]

    @property
    def split(self) -> bool:
        """Whether each rank has only a part of it."""
        return self not in (Axis.HIDDEN, Axis.HEAD_DIM)


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One matrix [outputs, inputs] with its bias, or the weight of one norm.

    Attributes:
        role: what the decoders call it.
        hf: its name in a Hugging Face checkpoint, without the layer's prefix and without `.weight`.
        gguf: its name in a GGUF file, without the same.
        axes: of its dimensions.
        bias: the flag that says whether it has a bias; None: it never has.
        only: the flag that says whether it is there at all; None: it always is.
    """

    role: str
    hf: str
    gguf: str
    axes: tuple[Axis, ...]
    bias: Flag | None = None
    only: Flag | None = None

    def shape(self, config: ModelConfig) -> Shape:
        """Shape of the whole tensor."""
        return tuple(axis.size(config) for axis in self.axes)

    def present(self, config: ModelConfig, part: Part = "weight") -> bool:
        """Whether a model of this description has it, or its bias."""
        there = self.only is None or bool(getattr(config, self.only))
        return there and (part == "weight" or (self.bias is not None and bool(getattr(config, self.bias))))

    @property
    def is_norm(self) -> bool:
        """Whether it is the weight of a norm."""
        return len(self.axes) == 1


ENDS = (
    TensorSpec("embedding", "model.embed_tokens", "token_embd", (Axis.VOCABULARY, Axis.HIDDEN)),
    TensorSpec("final_norm", "model.norm", "output_norm", (Axis.HIDDEN,)),
    TensorSpec("head", "lm_head", "output", (Axis.VOCABULARY, Axis.HIDDEN), only="own_head"),
)
LAYER = (
    TensorSpec("input_norm", "input_layernorm", "attn_norm", (Axis.HIDDEN,)),
    TensorSpec("q", "self_attn.q_proj", "attn_q", (Axis.QUERIES, Axis.HIDDEN), bias="qkv_bias"),
    TensorSpec("k", "self_attn.k_proj", "attn_k", (Axis.KEYS, Axis.HIDDEN), bias="qkv_bias"),
    TensorSpec("v", "self_attn.v_proj", "attn_v", (Axis.KEYS, Axis.HIDDEN), bias="qkv_bias"),
    TensorSpec("q_norm", "self_attn.q_norm", "attn_q_norm", (Axis.HEAD_DIM,), only="qk_norm"),
    TensorSpec("k_norm", "self_attn.k_norm", "attn_k_norm", (Axis.HEAD_DIM,), only="qk_norm"),
    TensorSpec("o", "self_attn.o_proj", "attn_output", (Axis.HIDDEN, Axis.QUERIES), bias="o_bias"),
    TensorSpec("post_norm", "post_attention_layernorm", "ffn_norm", (Axis.HIDDEN,)),
    TensorSpec("gate", "mlp.gate_proj", "ffn_gate", (Axis.INNER, Axis.HIDDEN), bias="mlp_bias"),
    TensorSpec("up", "mlp.up_proj", "ffn_up", (Axis.INNER, Axis.HIDDEN), bias="mlp_bias"),
    TensorSpec("down", "mlp.down_proj", "ffn_down", (Axis.HIDDEN, Axis.INNER), bias="mlp_bias"),
)
# Norms of what attention and MLP give, before it is added to the residual; for families that have them.
AFTER_NORMS = (
    TensorSpec("after_attention_norm", "post_attention_layernorm", "post_attention_norm", (Axis.HIDDEN,)),
    TensorSpec("after_mlp_norm", "post_feedforward_layernorm", "post_ffw_norm", (Axis.HIDDEN,)),
)


# Norms of all queries of a row as one vector, and of all its keys, in place of one for each head.
WIDE_NORMS = (
    TensorSpec("wide_q_norm", "self_attn.q_norm", "attn_q_norm", (Axis.QUERIES,)),
    TensorSpec("wide_k_norm", "self_attn.k_norm", "attn_k_norm", (Axis.KEYS,)),
)


@dataclass(frozen=True, slots=True)
class Fused:
    """Matrices of a layer that files hold as one, their outputs one after the other.

    Attributes:
        hf: its name in a Hugging Face checkpoint, without the layer's prefix and without `.weight`.
        gguf: its name in a GGUF file, without the same.
        roles: whose matrices they are, in order.
    """

    hf: str
    gguf: str
    roles: tuple[str, ...]


FUSED_QKV = Fused("self_attn.qkv_proj", "attn_qkv", ("q", "k", "v"))
FUSED_GATE_UP = Fused("mlp.gate_up_proj", "ffn_up", ("gate", "up"))


def without(specs: tuple[TensorSpec, ...], *roles: str) -> tuple[TensorSpec, ...]:
    """`specs` but those with these roles.

    Raises:
        KeyError: none of them has one of the roles.
    """
    if unknown := set(roles) - {spec.role for spec in specs}:
        raise KeyError(f"no such roles: {', '.join(sorted(unknown))}")
    return tuple(spec for spec in specs if spec.role not in roles)


def renamed(specs: tuple[TensorSpec, ...], names: Mapping[str, str]) -> tuple[TensorSpec, ...]:
    """`specs` with other Hugging Face names for some roles.

    Raises:
        KeyError: none of them has that role.
    """
    if unknown := names.keys() - {spec.role for spec in specs}:
        raise KeyError(f"no such roles: {', '.join(sorted(unknown))}")
    return tuple(replace(spec, hf=names.get(spec.role, spec.hf)) for spec in specs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One architecture: decoder layers of attention and a gated MLP, with these names and variants.

    Attributes:
        name: what `ModelConfig.architecture` says.
        hf: how its transformers class reads a `config.json`.
        gguf: its name in GGUF files; None: llama.cpp has none for it.
        gguf_rules: how llama.cpp's files give what the family varies.
        gguf_pairs_adjacent: whether llama.cpp reorders the rows of q and k so that the halves of a rotary pair are side by side.
        activation: of the MLP's gate.
        norm_offset: what to add to the weights of all norms in Hugging Face checkpoints (1 if they are stored as w - 1).
        ends: tensors outside the layers.
        layer: tensors of each layer.
        fused: matrices of a layer that its files may hold as one.
        hf_layer: prefix of a layer's names in Hugging Face checkpoints.
        gguf_layer: prefix of a layer's names in GGUF files.
    """

    name: str
    hf: HfRules
    gguf: str | None = None
    gguf_rules: GgufRules = LIKE_LLAMA
    gguf_pairs_adjacent: bool = False
    activation: Activation = "silu"
    norm_offset: float = 0.0
    ends: tuple[TensorSpec, ...] = ENDS
    layer: tuple[TensorSpec, ...] = LAYER
    fused: tuple[Fused, ...] = ()
    hf_layer: str = "model.layers.{}."
    gguf_layer: str = "blk.{}."

    def __post_init__(self) -> None:
        for specs in (self.ends, self.layer):
            roles = [spec.role for spec in specs]
            if twice := sorted({role for role in roles if roles.count(role) > 1}):
                raise ValueError(f"the family {self.name} describes tensors twice: {', '.join(twice)}")
        scaled, partial = self.hf.scales != NO_SCALES, self.hf.rotary_factor is not None
        if self.gguf and (
            (scaled and self.gguf_rules.scales == NO_SCALES) or partial != self.gguf_rules.partial_rotary
        ):
            raise ValueError(
                f"the family {self.name} does not say how GGUF files give its scales and rotary dimensions"
            )
        if self.gguf_pairs_adjacent and self.gguf_rules.partial_rotary:
            raise ValueError(
                f"the family {self.name}: partly rotated heads with adjacent pairs cannot be read from GGUF"
            )

    def has(self, role: str) -> bool:
        """Whether its layers have a tensor with this role."""
        return any(spec.role == role for spec in self.layer)

    def tensors(self, config: ModelConfig) -> "Iterator[NamedTensor]":
        """All tensors that a model of this description has. A tied head is not a tensor of its own."""
        places: list[tuple[TensorSpec, int | None]] = [(spec, None) for spec in self.ends]
        places += [(spec, index) for index in range(config.layers) for spec in self.layer]
        for spec, layer in places:
            for part in PARTS:
                if spec.present(config, part):
                    yield NamedTensor(self, spec, layer, part)

    def tensor(self, role: str, layer: int | None = None, part: Part = "weight") -> "NamedTensor":
        """The tensor with this role: of a layer, or outside the layers if `layer` is None."""
        specs = self.ends if layer is None else self.layer
        return NamedTensor(self, next(spec for spec in specs if spec.role == role), layer, part)


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """One tensor of one model of a family; `layer` is None outside the layers."""

    family: Family
    spec: TensorSpec
    layer: int | None
    part: Part

    @property
    def hf(self) -> str:
        """Its name in a Hugging Face checkpoint, which the engine uses whatever file it comes from."""
        prefix = "" if self.layer is None else self.family.hf_layer.format(self.layer)
        return f"{prefix}{self.spec.hf}.{self.part}"

    @property
    def gguf(self) -> str:
        """Its name in a GGUF file."""
        prefix = "" if self.layer is None else self.family.gguf_layer.format(self.layer)
        return f"{prefix}{self.spec.gguf}.{self.part}"

    def shape(self, config: ModelConfig) -> Shape:
        """Shape of the whole tensor."""
        shape = self.spec.shape(config)
        return shape if self.part == "weight" else shape[:1]

    def present(self, config: ModelConfig) -> bool:
        """Whether a model of this description has it."""
        return self.spec.present(config, self.part)
