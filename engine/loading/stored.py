"""Which matrices a file keeps in quantized groups, known from its header alone. No torch."""

from typing import Literal

from configs.model.config import ModelConfig
from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelSource
from engine.models.layout import gguf_names

GroupKind = Literal["Q4_0", "Q4_1", "Q8_0"]
_KINDS: dict[int, GroupKind] = {2: "Q4_0", 3: "Q4_1", 8: "Q8_0"}  # by ggml's numbers


def stored_kinds(source: ModelSource, config: ModelConfig, load_format: str) -> dict[str, GroupKind]:
    """How matrices are stored, by their Hugging Face names: those in groups that the kernels can read.

    Args:
        source: the model's files.
        config: their description.
        load_format: as in the settings; `dummy` weights have no groups.
    """
    if source.kind != "gguf" or load_format == "dummy":
        return {}
    infos, names = read_gguf_header(source.path).tensors, gguf_names(config)
    return {names.get(name, name): _KINDS[info.ggml_type] for name, info in infos.items() if info.ggml_type in _KINDS}
