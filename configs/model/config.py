"""What the decoder needs to know of a model, whatever file said it. Read from headers only: no torch, no tensor data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.model.source import ModelError, ModelSource

MAX_LAYERS = 4096  # more than any model has; a damaged header must not make us list millions
ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and arithmetic of one decoder-only model.

    Sizes count elements. `sliding_window` is the number of newest tokens, the token itself included, that layers with
    `sliding_layers[i]` true attend to; None if there is no such layer. `dtype` names the checkpoint's own type and is
    for information: everything is computed in fp32.
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
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "head_dim")
        for name in (*sizes, "max_position"):
            if getattr(self, name) < 1:
                raise ModelError(f"the model's {name} is {getattr(self, name)}; it must be at least 1.")
        if not self.rope_theta > 1:
            raise ModelError(f"the model's rope_theta is {self.rope_theta}; it must be greater than 1.")
        if self.heads % self.kv_heads:
            raise ModelError(f"{self.heads} attention heads cannot share {self.kv_heads} KV heads evenly.")
        if self.head_dim % 2:
            raise ModelError(f"rotary embeddings need an even head_dim; this model's is {self.head_dim}.")
        if (self.sliding_window is None) == any(self.sliding_layers) or len(self.sliding_layers) != self.layers:
            raise ModelError(f"the sliding window {self.sliding_window} does not match the layers' types.")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ModelError(f"the model's sliding window is {self.sliding_window}; it must be at least 1.")
        for token in (self.bos_token_id, *self.eos_token_ids):
            if token is not None and not 0 <= token < self.vocab_size:
                raise ModelError(f"special token {token} is outside the vocabulary of {self.vocab_size}.")

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers for one token in fp32, in bytes."""
        return self.layers * 2 * self.kv_heads * self.head_dim * 4

    @classmethod
    def from_source(cls, source: ModelSource) -> "ModelConfig":
        """Read the description of the model at `source`.

        Raises:
            ModelError: unreadable, an unknown architecture, or a feature that is not implemented.
        """
        from configs.model.gguf import config_from_gguf
        from configs.model.gguf_header import read_gguf_header
        from configs.model.hf import config_from_hf

        if source.kind == "gguf":
            return config_from_gguf(read_gguf_header(source.path))
        generation = source.path / "generation_config.json"
        return config_from_hf(
            read_json(source.path / "config.json"), read_json(generation) if generation.is_file() else {}
        )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`.

    Raises:
        ModelError: unreadable or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot read {path}: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} does not hold a JSON object.")
    return content


class Fields:
    """Typed look-ups in a description. A missing or null value takes the default; without one it is a ModelError."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self._where = where

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelError(f"{self._where}: {key} is {value!r}, not a whole number.")
        return value

    def layers(self, key: str) -> int:
        """A number of layers, small enough to make a list of."""
        count = self.integer(key)
        if not 1 <= count <= MAX_LAYERS:
            raise ModelError(f"{self._where}: {key} is {count}; it must be between 1 and {MAX_LAYERS}.")
        return count

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise ModelError(f"{self._where}: {key} is {value!r}, not a finite number.")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise ModelError(f"{self._where}: {key} is {value!r}, not true or false.")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self._where}: {key} is {value!r}, not a string.")
        return value

    def token(self, key: str) -> int | None:
        """A token id, or None."""
        return None if self.values.get(key) is None else self.integer(key)

    def tokens(self, key: str) -> tuple[int, ...]:
        """One token id, several, or none."""
        value = self.values.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
            raise ModelError(f"{self._where}: {key} is {value!r}, not a token id or a list of them.")
        return tuple(dict.fromkeys(ids))

    def must_be(self, key: str, *accepted: Any) -> None:
        """Refuse a feature that is not implemented: an absent or null value is fine, else one of `accepted`."""
        value = self.values.get(key)
        if value is not None and value not in accepted:
            raise ModelError(
                f"{self._where}: {key}={value!r} is not implemented; "
                f"supported: {', '.join(repr(item) for item in accepted) or 'leaving it out'}."
            )

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelError(f"{self._where}: {key} is missing.")
        return value
