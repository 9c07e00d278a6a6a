"""What a decoder needs to know about a model, whatever file says it. Read from headers only: no torch, no tensor data."""

from dataclasses import dataclass
from typing import Literal

from configs.model.ends import EndToken
from configs.model.pooling import UNSTATED, PoolingRules
from configs.model.scales import UNSCALED, Scales
from configs.model.source import ModelError


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Position interpolation: all rotary frequencies divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Llama 3.1's scaling: long wavelengths divided by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): NTK-by-parts ramp, and `attention_factor` on cos and sin."""

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool  # the ramp's ends are rounded to whole dimensions


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclass(frozen=True, slots=True)
class Rotation:
    """How positions turn queries and keys: the base of the frequencies, and what is done to them."""

    theta: float
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        if not self.theta > 1:
            raise ModelError(f"the model's rope_theta is {self.theta}; it must be greater than 1.")
        scaling = self.scaling
        if scaling is None:
            return
        if not scaling.factor > 0:
            raise ModelError(f"the model's rotary factor is {scaling.factor}; it must be greater than 0.")
        if not isinstance(scaling, LinearScaling) and scaling.original_max_position < 1:
            raise ModelError(
                f"the model's original_max_position_embeddings is {scaling.original_max_position}; it must be at least 1."
            )
        if isinstance(scaling, Llama3Scaling) and not scaling.low_freq_factor < scaling.high_freq_factor:
            raise ModelError(
                f"the model's low_freq_factor {scaling.low_freq_factor} must be less than its high_freq_factor "
                f"{scaling.high_freq_factor}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape of one decoder-only model; `architecture` names the family that says what is computed with it.

    Sizes count elements. `sliding_window` is the number of newest tokens, the token itself included, that layers with
    `sliding_layers[i]` true attend to; None if there is no such layer. `dtype` names the checkpoint's own type; a
    GPU computes in float16 for `float16` and in bfloat16 for all others, a CPU does not look at it. `rotary_dim` is how many
    dimensions of each head are rotated, its first ones; None: all. `window_rotation` is that of layers with a sliding window; None:
    that of all others. Layers in `unrotated_layers` turn nothing. `implementation` says whose code computes it: a family here, or
    transformers' own classes, of which only sizes, windows and ends are described. `pooling` says how vectors are made of states.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    sliding_window: int | None
    sliding_layers: tuple[bool, ...]
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_word_embeddings: bool
    max_position: int
    ends: tuple[EndToken, ...]
    dtype: str
    rotary_dim: int | None = None
    window_rotation: Rotation | None = None
    unrotated_layers: tuple[int, ...] = ()
    scales: Scales = UNSCALED
    pooling: PoolingRules = UNSTATED
    implementation: Literal["headrace", "transformers"] = "headrace"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim")
        for name in (*sizes, "max_position"):
            if getattr(self, name) < 1:
                raise ModelError(f"the model's {name} is {getattr(self, name)}; it must be at least 1.")
        self._check_rotation()
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} attention heads cannot share {self.kv_heads} KV heads evenly.")
        if self.head_dim % 2:
            raise ModelError(f"rotary embeddings need an even head_dim; this model's is {self.head_dim}.")
        if self.rotary_dim is not None and (self.rotary_dim % 2 or not 0 < self.rotary_dim < self.head_dim):
            raise ModelError(
                f"rotary embeddings need an even part of the head_dim {self.head_dim}; this model's is {self.rotary_dim}."
            )
        if (self.sliding_window is None) == any(self.sliding_layers) or len(self.sliding_layers) != self.layers:
            raise ModelError(f"the sliding window {self.sliding_window} does not match the layers' types.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"the model's sliding window is {self.sliding_window}; it must be at least 1.")
        for end in self.ends:
            if not 0 <= end.token_id < self.vocab_size:
                raise ModelError(f"the end of an answer, token {end}, is outside the vocabulary of {self.vocab_size}.")

    def _check_rotation(self) -> None:
        Rotation(self.rope_theta, self.rope_scaling)  # which checks its numbers
        if self.window_rotation is not None and self.sliding_window is None:
            raise ModelError("the model says how layers with a sliding window are rotated, and has none.")
        if any(not 0 <= layer < self.layers for layer in self.unrotated_layers):
            raise ModelError(f"the layers {self.unrotated_layers} without rotation are not among the {self.layers}.")

    @property
    def rotation(self) -> Rotation:
        """How queries and keys are turned, in layers of which `window_rotation` says nothing else."""
        return Rotation(self.rope_theta, self.rope_scaling)

    @property
    def max_model_len(self) -> int:
        """The longest sequence that the model is made for, in tokens, derived as vLLM does: `max_position` counts before linear
        scaling stretches it, YaRN says what it stretches, and Llama 3's is stretched already."""
        scaling = self.rope_scaling
        if isinstance(scaling, LinearScaling):
            return max(self.max_position, int(scaling.factor * self.max_position))
        if isinstance(scaling, YarnScaling):
            return max(self.max_position, int(scaling.factor * scaling.original_max_position))
        return self.max_position

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All tokens that end an answer, those that end a turn included."""
        return tuple(end.token_id for end in self.ends)

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def rotated(self) -> int:
        """Dimensions of each head that are rotated."""
        return self.rotary_dim or self.head_dim

    @property
    def attention_scale(self) -> float:
        """Factor on the attention scores."""
        return self.scales.attention_scale or self.head_dim**-0.5

    @property
    def own_head(self) -> bool:
        """Whether the output head is a matrix of its own rather than the embedding."""
        return not self.tie_word_embeddings

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers for one token in fp32, in bytes."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4
