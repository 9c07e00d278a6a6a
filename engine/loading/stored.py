"""How a file has matrices, known from its header alone, and which kernels take in quantized groups. No torch."""

from dataclasses import dataclass
from typing import Literal

from configs.model.config import ModelConfig
from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelSource
from configs.model.stored_tensor import StoredTensor
from engine.loading.fused import unfused
from engine.loading.gguf_tensors import gguf_tensors
from engine.models.layout import gguf_names

GroupKind = Literal["Q4_0", "Q4_1", "Q8_0"]
# The groups of 32 columns in which kernels take a type: its own, or 8-bit ones that hold the same numbers
# (`engine.loading.dequantize.to_q8_0`). Types that are not here have no such form: where a kernel wants groups they are rounded.
GROUPED: dict[str, GroupKind] = {
    "Q4_0": "Q4_0",
    "Q4_1": "Q4_1",
    "Q8_0": "Q8_0",
    "Q1_0": "Q8_0",
    "Q5_0": "Q8_0",
    "IQ4_NL": "Q8_0",
    "TQ1_0": "Q8_0",
    "TQ2_0": "Q8_0",
    "MXFP4": "Q8_0",
}


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A matrix whose rows of GGUF's blocks stand one after the other in a file.

    Attributes:
        tensor: where, and of which type and shape.
        half: if not 0, rows are to be put in order: the two halves of each head, so many rows each, are stored with their rows
            side by side.
    """

    tensor: StoredTensor
    half: int = 0


def stored_types(source: ModelSource, config: ModelConfig, load_format: str) -> dict[str, str]:
    """The types of a GGUF file's tensors by their Hugging Face names; none of another file.

    Args:
        source: the model's files.
        config: their description.
        load_format: as in the settings; `dummy` weights have no types.

    Raises:
        ModelError: a type that cannot be read, or a damaged file.
    """
    if source.kind != "gguf" or load_format == "dummy":
        return {}
    tensors, names = unfused(gguf_tensors(read_gguf_header(source.path)), config, "gguf"), gguf_names(config)
    return {names.get(name, name): tensor.kind for name, tensor in tensors.items()}


def stored_kinds(source: ModelSource, config: ModelConfig, load_format: str) -> dict[str, GroupKind]:
    """In which groups kernels take matrices, by their Hugging Face names: of those types that have such a form. Arguments and
    errors are those of `stored_types`."""
    types = stored_types(source, config, load_format)
    return {name: GROUPED[kind] for name, kind in types.items() if kind in GROUPED}
