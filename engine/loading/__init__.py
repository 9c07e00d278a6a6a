"""Readers of weights, one for each file format."""

from typing import TYPE_CHECKING

from configs.model.config import ModelConfig
from configs.model.source import ModelError, ModelSource

if TYPE_CHECKING:
    from engine.loading.progress import Tell
    from engine.loading.reader import Assemble, Loaded_co

_KINDS = {"safetensors": "hf", "gguf": "gguf"}


def load(
    source: ModelSource,
    config: ModelConfig,
    load_format: str,
    assemble: "Assemble[Loaded_co]",
    tell: "Tell | None" = None,
) -> "Loaded_co":
    """What `assemble` makes of the weights of `source`.

    Args:
        source: the files.
        config: their description (`engine.models.registry.read_config`).
        load_format: `auto`, `safetensors`, `gguf`, or `dummy` (no weights are read).
        assemble: makes the weights from a reader of tensors.
        tell: is told how far they are read.

    Raises:
        ModelError: the files do not fit the description or the format.
    """
    if tell is not None:
        from engine.loading.progress import watched

        assemble = watched(assemble, tell)
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
