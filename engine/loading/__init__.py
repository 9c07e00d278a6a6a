"""Weights from any format into one form. This module imports no torch: sizes are needed before it is loaded."""

from math import prod
from typing import TYPE_CHECKING

from configs.model_config import ModelConfig
from configs.model_source import ModelError, ModelSource
from engine.loading.layout import expected_shapes

if TYPE_CHECKING:
    from engine.loading.assemble import Assemble, Loaded
    from engine.loading.weights import Weights

_KINDS = {"safetensors": "hf", "gguf": "gguf"}


def load_weights(source: ModelSource, config: ModelConfig, load_format: str) -> "Weights":
    """Load the weights of `source` as fp32; see `load`."""
    from engine.loading.assemble import assemble

    return load(source, config, load_format, assemble)


def load(source: ModelSource, config: ModelConfig, load_format: str, assemble: "Assemble[Loaded]") -> "Loaded":
    """What `assemble` makes of the weights of `source`.

    Args:
        source: the files.
        config: their description (`ModelConfig.from_source`).
        load_format: `auto`, `safetensors`, `gguf`, or `dummy` (no weights are read).

    Raises:
        ModelError: the files do not fit the description or the format.
    """
    if load_format == "dummy":
        from engine.loading.dummy import load_dummy

        return load_dummy(config, assemble)
    if load_format != "auto" and _KINDS[load_format] != source.kind:
        raise ModelError(f"--load-format {load_format} does not fit {source.path}; use --load-format auto.")
    if source.kind == "gguf":
        from engine.loading.gguf import load_gguf

        return load_gguf(source.path, config, assemble)
    from engine.loading.hf import load_hf

    return load_hf(source.path, config, assemble)


def weights_bytes(config: ModelConfig) -> int:
    """Memory of the loaded weights, in bytes: fp32, a tied head counted once."""
    return 4 * sum(prod(shape) for shape in expected_shapes(config).values())
