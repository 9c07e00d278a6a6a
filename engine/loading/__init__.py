"""Weights from any format into one form. This module imports no torch: sizes are needed before it is loaded."""

from math import prod
from typing import TYPE_CHECKING

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource
from engine.loading.layout import expected_shapes

if TYPE_CHECKING:
    from engine.loading.assemble import Assemble, Loaded_co
    from engine.loading.weights import Weights

_Q4 = frozenset((2, 3))  # ggml's numbers of Q4_0 and Q4_1
_KINDS = {"safetensors": "hf", "gguf": "gguf"}


def load_weights(source: ModelSource, config: ModelConfig, load_format: str) -> "Weights":
    """Load the weights of `source` as fp32; see `load`."""
    from engine.loading.assemble import assemble

    return load(source, config, load_format, assemble)


def load(source: ModelSource, config: ModelConfig, load_format: str, assemble: "Assemble[Loaded_co]") -> "Loaded_co":
    """What `assemble` makes of the weights of `source`.

    Args:
        source: the files.
        config: their description (`read_config`).
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
    """Memory of the weights in fp32, in bytes, a tied head counted once."""
    return 4 * sum(prod(shape) for shape in expected_shapes(config).values())


def packed_bytes(source: ModelSource, config: ModelConfig, load_format: str) -> int:
    """Memory of the weights as `engine.loading.packed` holds them, in bytes: 4-bit groups of a file as they are (20 bytes for
    32 weights), all other matrices in 8 bits (34 bytes), norms and biases in fp32."""
    four_bits = _four_bits(source) if load_format != "dummy" else frozenset()
    total = 0
    for name, shape in expected_shapes(config).items():
        group = 20 if name in four_bits else 34
        total += prod(shape) * 4 if len(shape) == 1 else -(-shape[0] // 16) * 16 * shape[1] // 32 * group
    return total


def _four_bits(source: ModelSource) -> frozenset[str]:
    """Tensors of a GGUF file that are stored as Q4_0 or Q4_1, by their Hugging Face names."""
    if source.kind != "gguf":
        return frozenset()
    from configs.model.gguf_header import read_gguf_header
    from engine.loading.gguf_names import hf_name

    tensors = read_gguf_header(source.path).tensors
    return frozenset(hf_name(name) for name, info in tensors.items() if info.ggml_type in _Q4)
