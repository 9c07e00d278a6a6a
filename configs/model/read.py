"""A model's description, read from whichever kind of file holds it."""

from configs.model.config import ModelConfig
from configs.model.fields import read_json
from configs.model.gguf import config_from_gguf
from configs.model.gguf_header import read_gguf_header
from configs.model.hf import config_from_hf
from configs.model.source import ModelSource


def read_config(source: ModelSource) -> ModelConfig:
    """Read the description of the model at `source`.

    Raises:
        ModelError: unreadable, an unknown architecture, or a feature that is not implemented.
    """
    if source.kind == "gguf":
        return config_from_gguf(read_gguf_header(source.path))
    generation = source.path / "generation_config.json"
    return config_from_hf(read_json(source.path / "config.json"), read_json(generation) if generation.is_file() else {})
