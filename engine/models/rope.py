"""Rotary angles of a model, with its scaling of the frequencies."""

import math

import torch
from torch import Tensor

from configs.model.config import LinearScaling, Llama3Scaling, ModelConfig, RopeScaling, Rotation, YarnScaling


class Rope:
    """Cosines and sines for any positions of one model.

    Args:
        config: gives base, rotated dimensions and scaling.
        rotation: those of some layers; None: what `config` says of all that have no rotation of their own.
        factors: fp32 [rotated / 2], divisors of the frequencies from a GGUF file (Llama 3.1 and later), or None.

    Attributes:
        frequencies: fp32 [rotated / 2], radians per position, after scaling.
        magnitude: factor on cosines and sines; 1 except with YaRN.
    """

    def __init__(self, config: ModelConfig, factors: Tensor | None = None, rotation: Rotation | None = None) -> None:
        rotation = rotation or config.rotation
        exponents = torch.arange(0, config.rotated, 2, dtype=torch.int64).float() / config.rotated
        frequencies = 1.0 / (rotation.theta**exponents)
        self.frequencies = _scaled(frequencies, rotation.theta, rotation.scaling)  # radians per position
        if factors is not None:
            self.frequencies = self.frequencies / factors
        scaling = rotation.scaling
        self.magnitude = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0

    def rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines [n, 1, 1, dim / 2] and signed sines [n, 1, 2, dim / 2] for int64 [n], as `kernels.cpu.ops.rope` takes them.

        Computed in fp32 from fp32 angles, as transformers does, so that long contexts round the same way.
        """
        angles = positions.float()[:, None] * self.frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.magnitude != 1.0:
            cos, sin = cos * self.magnitude, sin * self.magnitude
        return cos[:, None, None], torch.stack((-sin, sin), dim=1)[:, None]


class LayerRopes:
    """The rotations of a model's layers.

    Args:
        config: says which layers are turned otherwise than others, or not at all.
        factors: see `Rope`; of layers without a rotation of their own.

    Attributes:
        ropes: one or two.
        of_layer: which of them turns each layer; None: nothing does.
    """

    def __init__(self, config: ModelConfig, factors: Tensor | None = None) -> None:
        self.ropes = [Rope(config, factors)]
        if config.window_rotation is not None:
            self.ropes.append(Rope(config, rotation=config.window_rotation))
        own = [len(self.ropes) - 1 if slides else 0 for slides in config.sliding_layers]
        self.of_layer = [None if layer in config.unrotated_layers else rope for layer, rope in enumerate(own)]


def _scaled(frequencies: Tensor, theta: float, scaling: RopeScaling | None) -> Tensor:
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling)
    if isinstance(scaling, YarnScaling):
        return _yarn(frequencies, theta, scaling)
    return frequencies


def _llama3(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Keep frequencies whose wavelengths fit often into the original context, divide those that do not, blend in between."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)  # full turns within the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def _yarn(frequencies: Tensor, theta: float, scaling: YarnScaling) -> Tensor:
    """NTK by parts (arXiv 2309.00071, section 3.2): fast dimensions are kept, slow ones interpolated, with a ramp in between."""
    dim = 2 * len(frequencies)

    def dimension(turns: float) -> float:
        """The (fractional) pair index that makes `turns` full turns within the original context."""
        return dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    keep = 1 - ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)
